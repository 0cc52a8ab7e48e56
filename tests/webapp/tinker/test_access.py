"""Who may use the wire, and what errors look like to the SDK."""

from typing import Any

import pytest
from django.db import OperationalError
from django.utils.timezone import now

from tests.webapp.cast import make_viewer
from tests.webapp.deployments.conftest import make_checkpoint
from tests.webapp.tinker.conftest import Program
from webapp.accounts.credentials import forget_actors
from webapp.accounts.models import ApiKey, Membership, Role
from webapp.accounts.services import revoke_key
from webapp.fleet.models import BaseModel
from webapp.runs.models import Operation, Run, Session
from webapp.tinker import services


def test_another_projects_ids_do_not_exist(
    program: Program, stranger: Program, model_id: str
) -> None:
    session_id = model_id.split(":", maxsplit=1)[0]
    calls: list[tuple[str, dict[str, Any]]] = [
        ("get_info", {"model_id": model_id}),
        ("optim_step", {"model_id": model_id, "seq_id": 1}),
        ("save_weights", {"model_id": model_id, "seq_id": 1, "path": "x"}),
        ("create_model", {"session_id": session_id, "model_seq_id": 1, "base_model": "x"}),
        (f"sessions/{session_id}/finish", {}),
        ("load_weights", {"model_id": model_id, "seq_id": 1, "path": "tinker://a/weights/b"}),
    ]
    for path, fields in calls:
        answer = stranger.post(path, **fields)
        assert (path, stranger.status) == (path, 404)
        assert "There is no" in answer["detail"]
    stranger.train(model_id, 1)
    assert stranger.status == 404
    stranger.read(f"training_runs/{model_id}")
    assert stranger.status == 404
    assert Operation.objects.count() == 1


def test_a_request_without_a_key_is_told_what_to_set(program: Program) -> None:
    program.secret = ""
    answer = program.post("create_session")
    assert program.status == 401
    assert "TINKER_API_KEY" in answer["detail"]


def test_a_wrong_key_is_refused_with_a_sentence(program: Program) -> None:
    program.secret = "tml-wrong"
    answer = program.post("client/config")
    assert program.status == 401
    assert "unknown or was revoked" in answer["detail"]


def test_a_revoked_key_is_refused_once_it_is_forgotten(program: Program) -> None:
    program.open_session()
    revoke_key(actor=program.actor, key_id=ApiKey.objects.get().pk)
    forget_actors()
    program.post("create_session")
    assert program.status == 401


def test_a_known_key_costs_no_query(program: Program, django_assert_num_queries: Any) -> None:
    program.post("client/config")
    with django_assert_num_queries(0):
        program.post("client/dynamic_config")


def test_a_viewers_key_reads_and_does_not_write(program: Program, model_id: str) -> None:
    Membership.objects.update(role=Role.VIEWER)
    forget_actors()
    program.train(model_id, 1)
    assert program.status == 403
    program.post("get_info", model_id=model_id)
    assert program.status == 200


def test_what_is_not_offered_is_a_404_that_names_it(program: Program) -> None:
    answer = program.post("unload_model", model_id="x")
    assert program.status == 404
    assert "/api/v1/unload_model" in answer["detail"]
    program.read("optim_step")
    assert program.status == 405


def test_telemetry_is_taken_from_anybody(program: Program) -> None:
    program.secret = ""
    assert program.post("telemetry", events=[]) == {"status": "accepted"}


def test_a_bug_is_no_5xx_and_a_busy_database_is(
    program: Program, model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> None:
        def find_log(*_: object) -> Run:
            raise error

        monkeypatch.setattr(services, "find_log", find_log)

    fail(KeyError("a bug"))
    answer = program.train(model_id, 1)
    assert program.status == 400
    assert "Internal error" in answer["detail"]
    assert "a bug" not in answer["detail"]
    fail(OperationalError("database is locked"))
    program.train(model_id, 1)
    assert program.status == 503


def test_the_hot_path_is_a_handful_of_queries(
    program: Program, model_id: str, django_assert_max_num_queries: Any
) -> None:
    program.train(model_id, 1)
    with django_assert_max_num_queries(4):  # the run, a savepoint there and back, the row
        program.train(model_id, 2)


def test_a_model_of_a_stranger_in_the_same_base_model_is_a_run_of_its_own(
    program: Program, stranger: Program, base_model: BaseModel
) -> None:
    mine, theirs = program.open_model(base_model), stranger.open_model(base_model)
    assert mine != theirs
    assert stranger.read("training_runs")["cursor"]["total_count"] == 1


def test_a_session_begins_with_what_its_program_will_wait_for(program: Program) -> None:
    answer = program.post("create_session")
    assert answer["warning_message"] == "waiting for a sampler: none is alive"


@pytest.mark.parametrize("name", ["me", "token", "search", "config"])
def test_a_viewer_changes_no_checkpoint_whatever_its_name(
    program: Program, model_id: str, name: str
) -> None:
    checkpoint = make_checkpoint(Run.objects.get(), name=name)
    Session.objects.update(finished_at=now())
    viewer = Program(make_viewer(program.actor))
    path = f"training_runs/{model_id}/checkpoints/sampler_weights/{name}"
    viewer.send("DELETE", path, {})
    assert viewer.status == 403
    checkpoint.refresh_from_db()
    assert checkpoint.deleted_at is None
