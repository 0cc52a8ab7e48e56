"""Copies of checkpoints over the wire: where they may go, what they keep, and only once."""

from pathlib import Path
from typing import Any

import pytest
from django.utils.timezone import now
from pytest_django import Settings

from tests.webapp.cast import make_actor, make_viewer, sign_in
from tests.webapp.checkpoints.test_services import SAVED
from tests.webapp.tinker.conftest import Program
from webapp.accounts.services import create_project
from webapp.checkpoints.copies import copy_checkpoint
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import find_folder, register_checkpoint
from webapp.core.errors import UserError
from webapp.runs.models import Run, Session

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, settings: Settings) -> None:
    settings.HONE_HOME = tmp_path


@pytest.fixture
def source(program: Program, model_id: str, tmp_path: Path) -> Checkpoint:
    return register(tmp_path, ttl_seconds=3600, user_metadata={"a": "b"})


def register(home: Path, **changes: Any) -> Checkpoint:
    run = Run.objects.get(session__isnull=False)
    columns = {"kind": "training", "name": "half", "seq": 3, "step": 2, **changes}
    path = f"checkpoints/{run.pk}/{columns['name']}-{columns['seq']}"
    (home / path).mkdir(parents=True)
    (home / path / "adapter_model.safetensors").write_bytes(b"weights")
    return register_checkpoint(run=run, path=path, saved=SAVED, **columns)


def copy(program: Program, source: Checkpoint, key: str = "k", **fields: Any) -> Any:
    fields = {"source_path": source.tinker_path, **fields}
    return program.send("POST", "copy_weights", fields, **{"X-Idempotency-Key": key})


def find(path: str) -> Checkpoint:
    return next(row for row in Checkpoint.objects.select_related("run") if row.tinker_path == path)


def test_a_copy_goes_into_another_project_of_its_user(program: Program, source: Checkpoint) -> None:
    run = source.run
    Run.objects.filter(pk=run.pk).update(config={"renderer_name": "role_colon"})
    archive = create_project(user=program.actor.user, name="archive")
    told = copy(program, source, destination_project_id=archive.pk, ttl_seconds=7200)
    assert program.status == 200
    made = find(told["tinker_path"])
    assert (made.project, made.run.project) == (archive, archive)
    assert made.expires_at is not None
    assert (made.kind, made.name, made.digest, made.user_metadata, made.has_optimizer) == (
        "training",
        "half",
        source.digest,
        {"a": "b"},
        True,
    )
    assert (made.run.parent, made.run.is_over, made.run.config) == (
        source,
        True,
        {"renderer_name": "role_colon"},
    )
    there = Program(make_actor_of(program, archive))
    info = there.post("weights_info", tinker_path=told["tinker_path"])
    assert (info["base_model"], info["lora_rank"]) == ("tiny-chatml-1m", 8)
    (run_id,) = [each["training_run_id"] for each in there.read("training_runs")["training_runs"]]
    assert told["tinker_path"] == f"tinker://{run_id}/weights/half"
    (listed,) = there.read(f"training_runs/{run_id}/checkpoints")["checkpoints"]
    assert listed["tinker_path"] == told["tinker_path"]


def test_a_copy_has_its_pages(program: Program, source: Checkpoint) -> None:
    made = find(copy(program, source, destination_project_id=source.project_id)["tinker_path"])
    browser = sign_in(program.actor)
    run_page = browser.get(f"/runs/{made.run_id}/").content.decode()
    assert "Copy of" in run_page
    for page in (f"/checkpoints/{made.pk}/", "/checkpoints/lineage/", "/checkpoints/", "/runs/"):
        answer = browser.get(page)
        assert (page, answer.status_code) == (page, 200)
        assert "Copy of" in answer.content.decode()
    log = browser.get(f"/runs/{made.run_id}/?tab=log").content.decode()
    assert f"Copied from {source.tinker_path}" in log


def make_actor_of(program: Program, project: Any) -> Any:
    return type(program.actor)(user=program.actor.user, project=project, role="owner")


def test_a_copy_shares_bytes_and_outlives_its_source(program: Program, source: Checkpoint) -> None:
    made = find(copy(program, source, destination_project_id=source.project_id)["tinker_path"])
    (ours,), (theirs,) = (list(find_folder(each).iterdir()) for each in (made, source))
    assert ours.stat().st_ino == theirs.stat().st_ino
    program.send("DELETE", f"training_runs/{source.run.model_id}/checkpoints/weights/half", {})
    assert program.status == 204
    assert ours.read_bytes() == b"weights"


def test_a_copy_is_trained_from_and_not_trained_on(program: Program, source: Checkpoint) -> None:
    path = copy(program, source, destination_project_id=source.project_id)["tinker_path"]
    promise = program.post(
        "load_weights",
        session_id=source.run.session_id,
        model_seq_id=1,
        path=path,
        optimizer=True,
    )
    assert promise["model_id"].endswith(":train:1")
    model_id = find(path).run.model_id
    told = program.post("optim_step", model_id=model_id, seq_id=1, adam_params={})
    assert "This run has ended" in told["detail"]


def test_a_repeat_with_the_same_key_is_the_first_copy(
    program: Program, source: Checkpoint, tmp_path: Path
) -> None:
    project = source.project_id
    first = copy(program, source, destination_project_id=project)
    assert copy(program, source, destination_project_id=project) == first
    assert Run.objects.count() == 2
    assert copy(program, source, "other", destination_project_id=project) != first
    another = register(tmp_path, name="final", seq=4)
    told = copy(program, another, destination_project_id=project)
    assert program.status == 400
    assert "X-Idempotency-Key was used for something else" in told["detail"]


def test_a_copy_may_take_a_place_in_a_session_once(program: Program, source: Checkpoint) -> None:
    place: dict[str, Any] = {"session_id": source.run.session_id, "model_seq_id": 4}
    first = copy(program, source, **place)
    assert first["tinker_path"] == f"tinker://{source.run.session_id}:train:4/weights/half"
    assert copy(program, source, "other", **place) == first
    taken = copy(program, source, "third", session_id=source.run.session_id, model_seq_id=0)
    assert "model_seq_id 0 of this session was used for something else" in taken["detail"]
    Session.objects.update(finished_at=now())
    ended = copy(program, source, "x", session_id=source.run.session_id, model_seq_id=5)
    assert "session has ended" in ended["detail"]


def test_a_copy_goes_only_where_its_user_may_write(program: Program, source: Checkpoint) -> None:
    carols = make_actor("carol").project
    told = copy(program, source, destination_project_id=carols.pk)
    assert (program.status, "is a member of" in told["detail"]) == (404, True)
    reader = Program(make_viewer(program.actor))
    copy(reader, source, destination_project_id=source.project_id)
    assert reader.status == 403
    theirs = make_actor("dora")
    make_viewer(theirs, "eve")
    theirs.project.memberships.create(user=program.actor.user, role="viewer")
    told = copy(program, source, destination_project_id=theirs.project.pk)
    assert (program.status, "is a viewer of" in told["detail"]) == (400, True)


def test_a_strangers_weights_are_copied_with_their_key_or_when_they_are_public(
    program: Program, stranger: Program, source: Checkpoint
) -> None:
    target = {"destination_project_id": stranger.actor.project.pk}
    copy(stranger, source, **target)
    assert stranger.status == 404
    fields = {"source_path": source.tinker_path, **target}
    token = {"X-Tinker-Weights-Access-Token": "tml-wrong"}
    told = stranger.send("POST", "copy_weights", fields, **token)
    assert (stranger.status, "weights_access_token is unknown" in told["detail"]) == (400, True)
    token = {"X-Tinker-Weights-Access-Token": program.secret}
    told = stranger.send("POST", "copy_weights", fields, **token)
    assert find(told["tinker_path"]).project == stranger.actor.project
    Checkpoint.objects.filter(pk=source.pk).update(is_public=True)
    assert copy(stranger, source, **target)["tinker_path"] != told["tinker_path"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "destination_project_id is required"),
        ({"destination_project_id": "p", "ttl_seconds": 60}, "from 3600"),
        ({"destination_project_id": "p", "source_path": "tinker://x/y/z"}, "no checkpoint's path"),
        ({"session_id": "ses-none"}, "There is no session ses-none"),
    ],
)
def test_what_cannot_be_copied_is_refused_in_a_sentence(
    program: Program, source: Checkpoint, fields: dict[str, Any], sentence: str
) -> None:
    assert sentence in copy(program, source, **fields)["detail"]
    assert program.status in (400, 404)
    assert Checkpoint.objects.count() == 1


def test_files_that_have_gone_are_said_to_have_gone(program: Program, source: Checkpoint) -> None:
    for file in find_folder(source).iterdir():
        file.unlink()
    find_folder(source).rmdir()
    told = copy(program, source, destination_project_id=source.project_id)
    assert "could not be copied" in told["detail"]
    assert Run.objects.count() == 1


def test_a_source_that_is_deleted_meanwhile_leaves_no_half_of_a_copy(
    program: Program, source: Checkpoint, tmp_path: Path
) -> None:
    (find_folder(source) / "optimizer.safetensors").touch()
    Checkpoint.objects.filter(pk=source.pk).update(deleted_at=now())
    (find_folder(source) / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="deleted while it was being copied"):
        copy_checkpoint(actor=program.actor, source=source, project=source.project)
    assert Run.objects.count() == 1
    left = [path for path in (tmp_path / "checkpoints").glob("*/*") if path.is_dir()]
    assert left == [find_folder(source)]
