"""Exports on the dashboard: said to be exports, downloaded, and not offered for anything else."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from pytest_django import Settings

from tests.webapp.cast import make_actor, sign_in
from tests.webapp.checkpoints.test_pages import make_files, make_run, read
from tests.webapp.deployments.conftest import make_checkpoint
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.checkpoints import links
from webapp.checkpoints.downloads import stream_archive, stream_flat_archive
from webapp.checkpoints.models import Checkpoint
from webapp.core.errors import UserError
from webapp.deployments.services import ask, create_deployment
from webapp.fleet.models import BaseModel, BaseModelName
from webapp.runs.models import Run

USES = ("Serve", "Chat", "Evaluate", "Branch")


@pytest.fixture
def alice(db: None) -> Actor:
    return make_actor("alice")


@pytest.fixture
def run(alice: Actor) -> Run:
    base_model = BaseModel.objects.create(path="/models/tiny")
    BaseModelName.objects.create(base_model=base_model, name="tiny/chat")
    return make_run(alice, base_model)


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


@pytest.fixture
def export(run: Run) -> Checkpoint:
    return make_checkpoint(run, name="hf", kind="external", is_encrypted=True)


def unpack(response: Any) -> dict[str, bytes]:
    content = b"".join(response)
    assert response.headers["Content-Length"] == str(len(content))
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = {name: archive.extractfile(name) for name in archive.getnames()}
        return {name: file.read() for name, file in files.items() if file}


def test_the_list_offers_an_export_for_download_alone(browser: Client, export: Checkpoint) -> None:
    page = read(browser, "/checkpoints/?kind=external")
    assert "encrypted" in page
    assert f"/checkpoints/{export.pk}/download/" in page
    assert f"left={export.pk}" not in page
    assert f"checkpoint={export.pk}" not in page
    assert "No checkpoint is like that" in read(browser, "/checkpoints/?kind=training")


def test_the_page_says_what_an_export_is_for(browser: Client, export: Checkpoint) -> None:
    page = read(browser, f"/checkpoints/{export.pk}/")
    assert "encrypted with age: only who holds one of its keys can read it" in page
    assert f"tinker://{export.run.model_id}/external_weights/hf" in page
    assert "step 10, external (age)" in page
    assert "Not loaded by a sampling server yet" not in page
    assert not [use for use in USES if f"> {use}" in page]


def test_other_checkpoints_are_offered_for_everything(browser: Client, run: Run) -> None:
    page = read(browser, f"/checkpoints/{make_checkpoint(run).pk}/")
    assert [use for use in USES if f"> {use}" in page] == list(USES)


def test_a_run_offers_no_export_to_go_on_with(browser: Client, export: Checkpoint) -> None:
    Run.objects.update(status="done")
    assert f"checkpoint={export.pk}" not in read(browser, f"/runs/{export.run_id}/")
    tab = read(browser, f"/runs/{export.run_id}/?tab=checkpoints")
    assert "hf" in tab
    assert f"parent={export.pk}" not in tab


def test_an_export_is_not_in_the_choices_of_what_to_serve(
    browser: Client, run: Run, export: Checkpoint
) -> None:
    other = make_checkpoint(run)
    page = read(browser, "/deployments/new/")
    assert other.pk in page
    assert export.pk not in page


def test_an_export_is_neither_served_nor_asked(alice: Actor, export: Checkpoint) -> None:
    with pytest.raises(UserError, match="exported to be downloaded"):
        create_deployment(actor=alice, name="d", checkpoint=export)
    with pytest.raises(UserError, match="exported to be downloaded"):
        ask(actor=alice, messages=[{"role": "user", "content": "hi"}], checkpoint=export)


def test_a_download_of_an_export_is_its_folder(
    browser: Client, export: Checkpoint, tmp_path: Path, settings: Settings
) -> None:
    settings.HONE_HOME = tmp_path
    files = {"README__md.age": b"1", "adapter_config__json.age": b"2"}
    make_files(export, tmp_path, **files)
    unpacked = unpack(browser.get(f"/checkpoints/{export.pk}/download/"))
    assert {Path(name).name: content for name, content in unpacked.items()} == {
        "README.md.age": b"1",
        "adapter_config.json.age": b"2",
    }


def test_archives_name_the_base_model_and_not_its_place_on_this_server(
    run: Run, tmp_path: Path, settings: Settings
) -> None:
    settings.HONE_HOME = tmp_path
    checkpoint = make_checkpoint(run, name="half")
    config = json.dumps({"base_model_name_or_path": "/models/tiny", "r": 8}).encode()
    files = {"adapter_config__json": config, "adapter_model__safetensors": b"w" * 700}
    make_files(checkpoint, tmp_path, optimizer__safetensors=b"o", **files)
    flat = unpack(stream_flat_archive(checkpoint))
    assert json.loads(flat["adapter_config.json"]) == {
        "base_model_name_or_path": "tiny/chat",
        "r": 8,
    }
    assert flat.keys() == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "checkpoint_complete",
    }
    assert (flat["adapter_model.safetensors"], flat["checkpoint_complete"]) == (b"w" * 700, b"")
    folders = {name.partition("/")[0] for name in unpack(stream_archive(checkpoint))}
    assert len(folders) == 1


def test_an_older_sdk_fetches_the_archive_by_its_redirect(
    alice: Actor, run: Run, tmp_path: Path, settings: Settings
) -> None:
    settings.HONE_HOME = tmp_path
    checkpoint = make_checkpoint(run, name="half")
    make_files(checkpoint, tmp_path, adapter_config__json=b"{}", adapter_model__safetensors=b"w")
    _, secret = create_key(actor=alice, name="laptop")
    path = f"/api/v1/training_runs/{run.model_id}/checkpoints/sampler_weights/half/archive"
    answer = Client().get(path, headers={"X-API-Key": secret})
    assert answer.status_code == 302
    url = answer.headers["Location"].removeprefix("http://testserver")
    assert url.startswith(f"/files/{checkpoint.pk}/{links.ARCHIVE}?token=")
    assert "checkpoint_complete" in unpack(Client().get(url))
