"""Exports over the wire: asked for, listed, linked to, fetched without a key."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyrage
import pytest
from django.core import signing
from django.test import Client
from django.test.utils import override_script_prefix
from pytest_django import Settings

from tests.webapp.checkpoints.test_services import SAVED
from tests.webapp.tinker.conftest import Program
from webapp.checkpoints import links
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import register_checkpoint
from webapp.runs.models import Run

pytestmark = pytest.mark.django_db

CONTENT = {"README.md": b"# hello", "adapter_model.safetensors": bytes(range(256)) * 9000}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, settings: Settings) -> None:
    settings.HONE_HOME = tmp_path


@pytest.fixture
def export(model_id: str, tmp_path: Path) -> Checkpoint:
    return register(tmp_path, name="hf", seq=3)


def register(home: Path, *, name: str, seq: int, kind: str = "external") -> Checkpoint:
    run = Run.objects.get()
    folder = home / "checkpoints" / f"{name}-{seq}"
    folder.mkdir(parents=True)
    for file, content in CONTENT.items():
        (folder / file).write_bytes(content)
    path = str(folder.relative_to(home))
    return register_checkpoint(
        run=run, kind=kind, name=name, seq=seq, step=1, path=path, saved=SAVED
    )


def ask_urls(program: Program, export: Checkpoint, **headers: str) -> Any:
    path = f"training_runs/{export.run.model_id}/checkpoints/external_weights/{export.name}"
    return program.send("GET", f"{path}/external_weights_urls", {}, **headers)


def cut_host(url: str) -> str:
    assert url.startswith("http://testserver/files/")
    return url.removeprefix("http://testserver")


def save(program: Program, model_id: str, **fields: Any) -> Any:
    fields = {"model_id": model_id, "seq_id": 1, "path": "hf", **fields}
    return program.post("save_weights_external", **fields)


def test_an_export_is_an_operation_of_the_runs_log(program: Program, model_id: str) -> None:
    key = str(pyrage.x25519.Identity.generate().to_public())
    promise = save(program, model_id, ttl_seconds=3600, age_encryption_recipients=[key])
    assert program.status == 200
    assert save(program, model_id, ttl_seconds=3600, age_encryption_recipients=[key]) == promise
    operation = Run.objects.get().operations.get(seq=1)
    assert operation.kind == "save_weights_external"
    payload = json.loads(bytes(operation.payload or b""))
    assert (payload["recipients"], payload["ttl_seconds"]) == ([key], 3600)
    assert payload["overwrite"] is True


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"age_encryption_recipients": ["age1x"]}, "age_encryption_recipients.0 is 'age1x'"),
        ({"age_encryption_recipients": []}, "name 1 to 10"),
        ({"age_encryption_recipients": [7]}, "send a list of str"),
        ({"ttl_seconds": 3599}, "from 3600 to 315360000"),
        ({"ttl_seconds": 315_360_001}, "from 3600 to 315360000"),
        ({"path": None}, "path is required"),
    ],
)
def test_what_cannot_be_exported_is_refused_at_once_and_its_number_is_free(
    program: Program, model_id: str, fields: dict[str, Any], sentence: str
) -> None:
    assert sentence in save(program, model_id, **fields)["detail"]
    assert program.status == 400
    assert Run.objects.get().operations.get(seq=1).status == "refused"


def test_each_file_has_a_link_that_needs_no_key(program: Program, export: Checkpoint) -> None:
    told = ask_urls(program, export)
    assert program.status == 200
    expires = datetime.fromisoformat(told["expires"])
    assert expires.tzinfo is not None
    assert expires - datetime.now(UTC) > timedelta(minutes=15)
    assert told["urls"].keys() == CONTENT.keys()
    for file, url in told["urls"].items():
        answer = Client().get(cut_host(url))
        assert answer.status_code == 200
        assert answer.headers["Content-Length"] == str(len(CONTENT[file]))
        assert answer.getvalue() == CONTENT[file]


def test_links_are_under_the_address_that_the_program_used(
    program: Program, export: Checkpoint, settings: Settings
) -> None:
    settings.ALLOWED_HOSTS = ["gpu.example"]
    told = ask_urls(program, export, Host="gpu.example:8443")
    assert all(url.startswith("http://gpu.example:8443/files/") for url in told["urls"].values())


def test_links_keep_the_scheme_and_the_prefix_of_the_request(
    program: Program, export: Checkpoint
) -> None:
    path = f"training_runs/{export.run.model_id}/checkpoints/external_weights/hf"
    with override_script_prefix("/hone/"):  # as every server's handler sets it
        answer = program.client.get(
            f"/api/v1/{path}/external_weights_urls",
            headers={"X-API-Key": program.secret},
            secure=True,
        )
    urls = answer.json()["urls"].values()
    assert all(url.startswith(f"https://testserver/hone/files/{export.pk}/") for url in urls)


def test_a_link_is_for_its_file_and_its_checkpoint_alone(
    program: Program, export: Checkpoint, tmp_path: Path
) -> None:
    other = register(tmp_path, name="other", seq=4)
    urls = ask_urls(program, export)["urls"]
    path, token = cut_host(urls["README.md"]).split("?")
    browser = Client()
    for wrong in (
        f"/files/{export.pk}/adapter_model.safetensors?{token}",
        f"/files/{other.pk}/README.md?{token}",
        f"{path}?{token}x",
        path,
        f"{path}?token=",
    ):
        answer = browser.get(wrong)
        assert (wrong, answer.status_code) == (wrong, 403)
        assert "take the whole url" in answer.json()["detail"]
    assert browser.get(f"{path}?{token}").status_code == 200


def test_a_link_expires(
    program: Program, export: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = cut_host(ask_urls(program, export)["urls"]["README.md"])
    moment = time.time() + links.LIFETIME.total_seconds() + 1
    monkeypatch.setattr(time, "time", lambda: moment)
    answer = Client().get(url)
    assert answer.status_code == 403
    assert answer.json()["detail"] == "This link has expired: ask for new urls."


@pytest.mark.parametrize("file", ["../secret_key", "..%2Fsecret_key", "absent", "."])
def test_no_name_leads_out_of_the_folder(export: Checkpoint, tmp_path: Path, file: str) -> None:
    (tmp_path / "checkpoints" / "secret_key").write_text("s")
    token = signing.dumps([export.pk, file], salt=links.SALT)
    answer = Client().get(f"/files/{export.pk}/{file}", {"token": token})
    assert answer.status_code in (403, 404)


def test_a_link_to_what_was_deleted_says_so(program: Program, export: Checkpoint) -> None:
    url = cut_host(ask_urls(program, export)["urls"]["README.md"])
    path = f"training_runs/{export.run.model_id}/checkpoints/external_weights/{export.name}"
    program.send("DELETE", path, {})
    assert program.status == 204
    answer = Client().get(url)
    assert answer.status_code == 404
    assert "no longer on this server's disk" in answer.json()["detail"]
    assert "no checkpoint" in ask_urls(program, export)["detail"]
    assert program.status == 404


def test_only_exports_have_urls(program: Program, model_id: str, tmp_path: Path) -> None:
    register(tmp_path, name="half", seq=5, kind="training")
    path = f"training_runs/{model_id}/checkpoints/weights/half/external_weights_urls"
    assert "only external_weights have" in program.read(path)["detail"]
    assert program.status == 400


def test_a_stranger_gets_links_to_public_exports_alone(
    program: Program, stranger: Program, export: Checkpoint
) -> None:
    ask_urls(stranger, export)
    assert stranger.status == 404
    path = f"training_runs/{export.run.model_id}/checkpoints/external_weights/{export.name}"
    program.send("POST", f"{path}/publish", {})
    assert ask_urls(stranger, export)["urls"].keys() == CONTENT.keys()


def test_an_export_is_listed_and_neither_sampled_from_nor_trained_on(
    program: Program, export: Checkpoint
) -> None:
    (listed,) = program.read("checkpoints")["checkpoints"]
    assert (listed["checkpoint_type"], listed["checkpoint_id"]) == (
        "external",
        "external_weights/hf",
    )
    assert listed["tinker_path"] == export.tinker_path
    session_id = export.run.session_id
    sampler = program.post(
        "create_sampling_session",
        session_id=session_id,
        sampling_session_seq_id=0,
        model_path=export.tinker_path,
    )
    assert "exported to be downloaded" in sampler["detail"]
    loaded = program.post(
        "load_weights",
        session_id=session_id,
        model_seq_id=1,
        path=export.tinker_path,
        optimizer=False,
    )
    assert "exported to be downloaded" in loaded["detail"]
    assert Run.objects.count() == 1


def test_older_sdks_are_sent_to_an_archive(program: Program, model_id: str, tmp_path: Path) -> None:
    register(tmp_path, name="half", seq=5, kind="sampler")
    path = f"/api/v1/training_runs/{model_id}/checkpoints/sampler_weights/half/archive"
    answer = program.client.get(path, headers={"X-API-Key": program.secret})
    assert answer.status_code == 302
    assert answer.headers["Expires"].endswith("GMT")
    assert answer.headers["Location"].startswith("http://testserver/files/")


@pytest.mark.parametrize(
    ("version", "is_listed"),
    [("0.22.3", False), ("0.27.2", False), ("0.28.0", True), ("0.38.0", True), ("next", True)],
)
def test_an_sdk_is_told_of_exports_where_it_knows_the_kind(
    program: Program, export: Checkpoint, version: str, is_listed: bool
) -> None:
    headers = {"X-Stainless-Package-Version": version}
    for path in ("checkpoints", f"training_runs/{export.run.model_id}/checkpoints"):
        listed = program.send("GET", path, {}, **headers)["checkpoints"]
        assert (len(listed) == 1) == is_listed
