"""Sessions as things to look up: lists, search, another project, and a trace."""

import json
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from tests.webapp.cast import make_viewer
from tests.webapp.deployments.conftest import make_checkpoint
from tests.webapp.tinker.conftest import Program
from webapp.accounts.models import Membership, Project, Role
from webapp.accounts.services import create_project
from webapp.checkpoints.models import Checkpoint
from webapp.deployments.models import Deployment, SamplingCall, SamplingSession
from webapp.fleet.models import BaseModel
from webapp.runs.models import Operation, Run, Session
from webapp.tinker import traces


def open_named(program: Program, name: str = "", **fields: Any) -> str:
    return str(program.post("create_session", display_name=name, **fields)["session_id"])


def search(program: Program, **fields: Any) -> list[str]:
    answer = program.post("sessions/search", **fields)
    assert program.status == 200, answer
    return [each["session_id"] for each in answer["sessions"]]


def finish(program: Program, session_id: str, reason: str = "success") -> None:
    program.post(f"sessions/{session_id}/finish", reason={"type": reason}, detail="x")
    assert program.status == 204


def test_the_sessions_of_a_project_are_listed_newest_first(
    program: Program, stranger: Program
) -> None:
    mine = [program.open_session() for _ in range(3)]
    stranger.open_session()
    assert program.read("sessions")["sessions"] == mine[::-1]
    assert program.read("sessions?limit=1&offset=1&access_scope=accessible")["sessions"] == [
        mine[1]
    ]
    assert "access_scope" in program.read("sessions?access_scope=all")["detail"]


def test_a_session_is_described_in_strings(program: Program, model_id: str) -> None:
    session_id = open_named(program, "demo", user_metadata={"lr": 0.1, "tag": "a"})
    answer = program.read(f"sessions/{session_id}")
    assert answer["user_metadata"] == {"lr": "0.1", "tag": "a"}
    assert answer["display_name"] == "demo"
    of_model = program.read(f"sessions/{model_id.split(':', maxsplit=1)[0]}")
    assert of_model["training_run_ids"] == [model_id]


def test_a_search_finds_by_name_or_id(program: Program) -> None:
    math, code = open_named(program, "Math RL run"), open_named(program, "code run")
    assert search(program) == [code, math]
    assert search(program, display_name="RUN math") == [math]
    assert search(program, display_name="none") == []
    assert search(program, display_name="none", session_id=code) == [code]
    assert search(program, session_id="ses-none") == []


def test_a_search_finds_by_every_pair_of_metadata(program: Program) -> None:
    both = open_named(program, user_metadata={"a": "1", "b": "x"})
    open_named(program, user_metadata={"a": "1", "b": "y"})
    assert search(program, user_metadata={"a": "1", "b": "x"}) == [both]
    for odd in ("a__b", "it's", "$.a", "c.d", "é"):
        named = open_named(program, user_metadata={odd: "v"})
        assert search(program, user_metadata={odd: "v"}) == [named]
        assert search(program, user_metadata={odd: "w"}) == []
    for number in ("0", "-1"):
        told = program.post("sessions/search", user_metadata={number: "v"})
        assert (program.status, "name that is a number" in told["detail"]) == (400, True)


def test_a_search_finds_by_owner(program: Program) -> None:
    colleague = make_viewer(program.actor, "mona")
    Membership.objects.filter(user=colleague.user).update(role=Role.MEMBER)
    mine, theirs = program.open_session(), Program(colleague).open_session()
    assert search(program) == [mine]
    assert search(program, owner={"type": "accessible"}) == [theirs, mine]
    urns = [f"hone:user:{colleague.user.pk}"]
    assert search(program, owner={"type": "user", "owner_urns": urns}) == [theirs]


def test_a_search_finds_by_status(program: Program) -> None:
    active, done, failed, lost = (program.open_session() for _ in range(4))
    finish(program, done)
    finish(program, failed, "errored")
    Session.objects.filter(pk=lost).update(finished_at=now(), finish_reason="lost")
    ended = {"type": "client_finished"}
    assert search(program, statuses=[{"type": "active"}]) == [active]
    assert search(program, statuses=[ended]) == [failed, done]
    assert search(program, statuses=[ended | {"reasons": ["errored"]}]) == [failed]
    assert search(program, statuses=[{"type": "cancelled"}, {"type": "failed"}]) == []
    found = program.post("sessions/search")["sessions"]
    assert [each["status"] for each in found] == [
        None,
        {"type": "client_finished", "reason": {"type": "errored"}, "detail": "x"},
        {"type": "client_finished", "reason": {"type": "success"}, "detail": "x"},
        {"type": "active"},
    ]


def test_pages_of_a_search_join_without_a_gap(program: Program) -> None:
    wanted = [program.open_session() for _ in range(7)][::-1]
    moment = now()
    Session.objects.filter(pk__in=wanted[2:5]).update(created_at=moment)
    wanted = search(program)
    found: list[str] = []
    cursor = None
    for _ in range(4):
        answer = program.post("sessions/search", limit=2, cursor=cursor)
        found += [each["session_id"] for each in answer["sessions"]]
        cursor = answer["next_cursor"]
    assert found == wanted
    assert cursor is None


def test_a_summary_counts_what_is_kept(program: Program, model_id: str) -> None:
    run = Run.objects.get()
    make_checkpoint(run, name="a")
    make_checkpoint(run, name="b", size_bytes=7)
    make_checkpoint(run, name="gone", deleted_at=now())
    make_checkpoint(run, name="passing", is_ephemeral=True)
    (summary,) = program.post("sessions/search")["sessions"]
    assert (summary["checkpoints_count"], summary["checkpoint_storage_bytes"]) == (2, 1007)
    assert summary["owner"] == f"hone:user:{program.actor.user.pk}"
    assert summary["project_id"] == program.actor.project.pk


def test_lists_and_searches_cost_the_same_however_many_there_are(program: Program) -> None:
    def count(method: str, path: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            program.send(method, path, {})
        return len(captured)

    def count_both() -> tuple[int, int]:
        return count("GET", "sessions"), count("POST", "sessions/search")

    program.open_session()
    count_both()  # the key is looked up once
    few = count_both()
    for _ in range(10):
        program.open_session()
    assert count_both() == few == (2, 1)


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"limit": 0}, 400, "limit"),
        ({"limit": 201}, 400, "limit"),
        ({"owner": {"type": "all"}}, 400, "owner.type"),
        ({"owner": {"type": "user"}}, 400, "1 to 10"),
        ({"owner": {"type": "user", "owner_urns": ["x"]}}, 400, "hone:user:1"),
        ({"statuses": [{"type": "asleep"}]}, 400, "statuses.0.type"),
        ({"statuses": "active"}, 400, "statuses"),
        ({"user_metadata": {"a": 1}}, 400, "user_metadata.a"),
        ({"user_metadata": {str(n): "" for n in range(33)}}, 400, "32 pairs"),
        ({"project_ids": ["prj-other"]}, 404, "prj-other"),
        ({"cursor": {"last_created_at": "soon", "last_session_id": "x"}}, 400, "with its zone"),
        ({"cursor": {"last_created_at": "2026-13-45T00:00:00Z"}}, 400, "with its zone"),
        ({"cursor": {"last_created_at": "0001-01-01T00:00:00+14:00"}}, 400, "with its zone"),
        ({"cursor": {"last_created_at": "2026-01-01T00:00:00Z"}}, 400, "last_session_id"),
    ],
)
def test_a_search_for_nonsense_is_refused_by_field(
    program: Program, fields: dict[str, Any], status: int, said: str
) -> None:
    answer = program.post("sessions/search", **fields)
    assert (program.status, said in answer["detail"]) == (status, True)


def test_a_session_is_opened_in_the_keys_own_project(program: Program, stranger: Program) -> None:
    own = program.actor.project.pk
    assert Session.objects.get(pk=open_named(program, project_id=own)).project_id == own
    answer = program.post("create_session", project_id=stranger.actor.project.pk)
    assert (program.status, "a key of that project" in answer["detail"]) == (400, True)


class Moving:
    """An ended session with a run, a checkpoint, a sampling client; and a project to move it to."""

    def __init__(self, program: Program, model_id: str) -> None:
        self.program = program
        self.model_id = model_id
        self.session_id = model_id.split(":", maxsplit=1)[0]
        self.run = Run.objects.get()
        Operation.objects.update(status=Operation.Status.DONE)
        self.checkpoint = make_checkpoint(self.run, name="final")
        fields = {"session_id": self.session_id, "sampling_session_seq_id": 0}
        opened = program.post("create_sampling_session", **fields, base_model="tiny-chatml-1m")
        sampler = opened["sampling_session_id"]
        chunks = [{"type": "encoded_text", "tokens": [1, 2]}]
        program.post(
            "asample",
            sampling_session_id=sampler,
            seq_id=0,
            num_samples=1,
            prompt={"chunks": chunks},
            sampling_params={"max_tokens": 2},
        )
        assert program.status == 200
        finish(program, self.session_id)
        self.target = create_project(user=program.actor.user, name="the other")

    def move(self, project_id: str = "") -> Any:
        fields = {"project_id": project_id or self.target.pk}
        return self.program.send("PUT", f"sessions/{self.session_id}/project", fields)


@pytest.fixture
def moving(program: Program, model_id: str) -> Moving:
    return Moving(program, model_id)


def test_a_session_moves_with_all_that_it_made(moving: Moving) -> None:
    moving.move()
    assert moving.program.status == 204
    for table in (Session, Run, Checkpoint, SamplingSession, SamplingCall):
        owners = table._default_manager.values_list("project", flat=True)
        assert list(owners) == [moving.target.pk], table
    assert "Moved by alice to the project the other." in list(
        moving.run.log_lines.values_list("text", flat=True)
    )


def test_a_move_locks_sampling_clients_before_their_calls(moving: Moving) -> None:
    """As whoever ends a call does: the other way round they would wait for each other."""
    with CaptureQueriesContext(connection) as captured:
        moving.move()
    updates = [query["sql"] for query in captured if query["sql"].startswith("UPDATE")]
    tables = [sql.split('"')[1] for sql in updates]
    clients, calls = (table._meta.db_table for table in (SamplingSession, SamplingCall))
    assert tables.index(clients) < tables.index(calls)


def test_a_key_of_the_old_project_sees_a_moved_session_no_longer(moving: Moving) -> None:
    program = moving.program
    moving.move()
    paths = (
        f"sessions/{moving.session_id}",
        f"training_runs/{moving.model_id}",
        f"sessions/{moving.session_id}/trace_export",
    )
    for path in paths:
        program.read(path)
        assert program.status == 404, path
    assert program.read("sessions")["sessions"] == []
    assert program.read("training_runs")["training_runs"] == []
    moving.move()
    assert program.status == 404


def test_moving_to_where_it_is_changes_nothing(moving: Moving) -> None:
    moving.move(moving.program.actor.project.pk)
    assert moving.program.status == 204
    assert moving.run.log_lines.filter(text__startswith="Moved").count() == 0


def test_a_session_moves_to_no_project_of_others(moving: Moving, stranger: Program) -> None:
    for project_id in (stranger.actor.project.pk, "prj-none"):
        answer = moving.move(project_id)
        assert (moving.program.status, "member of" in answer["detail"]) == (404, True)
    Membership.objects.filter(project=moving.target).update(role=Role.VIEWER)
    assert "viewer" in moving.move()["detail"]
    fields = {"project_id": stranger.actor.project.pk}
    stranger.send("PUT", f"sessions/{moving.session_id}/project", fields)
    assert stranger.status == 404
    assert (
        "project_id is required"
        in moving.program.send("PUT", f"sessions/{moving.session_id}/project", {})["detail"]
    )


def test_a_session_that_is_open_or_at_work_does_not_move(moving: Moving) -> None:
    Operation.objects.update(status=Operation.Status.RUNNING)
    assert "still being done" in moving.move()["detail"]
    Session.objects.update(finished_at=None)
    assert "still open" in moving.move()["detail"]
    assert moving.program.status == 400
    assert Run.objects.get().project == moving.program.actor.project


def test_what_is_served_does_not_move(moving: Moving) -> None:
    Deployment.objects.create(
        project=moving.run.project,
        name="chat",
        base_model=moving.run.base_model,
        checkpoint=moving.checkpoint,
    )
    assert "The deployment chat serves" in moving.move()["detail"]
    assert Project.objects.get(pk=moving.run.project_id) == Run.objects.get().project


def read_trace(url: str) -> Any:
    return json.loads(Client().get(url).getvalue())


def test_a_trace_is_fetched_without_a_key(moving: Moving) -> None:
    at = now()
    Operation.objects.update(started_at=at, finished_at=at + timedelta(seconds=2))
    answer = moving.program.read(f"sessions/{moving.session_id}/trace_export")
    assert answer["status"] == "ready"
    parts = urlsplit(answer["url"])
    assert parts.scheme == "http"
    assert parts.netloc
    trace = read_trace(answer["url"])
    assert trace["otherData"]["session_id"] == moving.session_id
    events = trace["traceEvents"]
    names = [each["args"]["name"] for each in events if each["ph"] == "M"]
    assert names[0].endswith(f"({moving.model_id})")
    assert names[1].startswith("samples of sam-")
    running = [each for each in events if each["name"] == "create_model"]
    assert [each["ph"] for each in running] == ["b", "e"]
    assert running[1]["ts"] - running[0]["ts"] == 2_000_000
    waiting = [each for each in events if each["name"] == "sample queued"]
    assert [each["ph"] for each in waiting] == ["b"]
    json.dumps(trace, allow_nan=False)


def test_a_long_trace_is_written_in_pieces(moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    url = moving.program.read(f"sessions/{moving.session_id}/trace_export")["url"]
    whole = read_trace(url)
    monkeypatch.setattr(traces, "AT_ONCE", 1)
    assert len(list(traces.write_trace(Session.objects.get()))) == len(whole["traceEvents"]) + 1
    assert read_trace(url) == whole
    assert len(whole["traceEvents"]) == 4


def test_a_session_without_requests_has_an_empty_trace(program: Program) -> None:
    session_id = program.open_session()
    url = program.read(f"sessions/{session_id}/trace_export")["url"]
    assert read_trace(url)["traceEvents"] == []
    Session.objects.all().delete()
    assert Client().get(url).status_code == 404


def test_a_link_to_a_trace_opens_that_trace_alone(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = moving.program.read(f"sessions/{moving.session_id}/trace_export")["url"]
    query = urlsplit(url).query
    other = moving.program.open_session()
    client = Client()
    for address, said in (
        (f"/traces/{other}?{query}", "another session"),
        (f"/traces/{moving.session_id}?{query}x", "was changed"),
        (f"/traces/{moving.session_id}", "missing"),
    ):
        answer = client.get(address)
        assert (answer.status_code, said in answer.json()["detail"]) == (403, True)
    monkeypatch.setattr("webapp.tinker.traces.LIFETIME", timedelta(seconds=-1))
    assert "expired" in client.get(url).json()["detail"]


def test_work_for_a_session_that_ended_is_refused_in_a_sentence(
    moving: Moving, base_model: BaseModel
) -> None:
    program = moving.program
    fields = {"session_id": moving.session_id, "base_model": base_model.name}
    for path, more in (
        ("create_model", {"model_seq_id": 5}),
        ("create_sampling_session", {"sampling_session_seq_id": 5}),
    ):
        answer = program.post(path, **fields, **more)
        assert (program.status, "session has ended" in answer["detail"]) == (400, True)
    assert "has ended" in program.train(moving.model_id, 1)["detail"]
    finish(program, moving.session_id, "errored")
    assert Session.objects.get().finish_reason == "success"
