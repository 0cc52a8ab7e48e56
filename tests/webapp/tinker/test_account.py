"""What a project has used and what was changed in it, as the SDK's account calls read them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from tests.webapp.cast import make_run, make_viewer
from tests.webapp.deployments.conftest import make_checkpoint
from tests.webapp.tinker.conftest import Program
from webapp.accounts.audit import EVENT_TYPES
from webapp.accounts.models import AuditEntry
from webapp.accounts.services import add_member, revoke_key
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import calls
from webapp.deployments.models import SampledHour, SamplingCall, SamplingSession
from webapp.deployments.retention import forget_calls
from webapp.fleet.models import BaseModel
from webapp.runs.models import Operation, Run, Session
from webapp.runs.steering import request_stop

START = datetime(2026, 7, 13, tzinfo=UTC)
HOUR = timedelta(hours=1)


def read_usage(program: Program, start: datetime = START, hours: int = 24) -> Any:
    end = start + hours * HOUR
    path = f"starting_on={start:%Y-%m-%dT%H:%M:%SZ}&ending_before={end:%Y-%m-%dT%H:%M:%SZ}"
    answer = program.read(f"billing/usage/events?{path}")
    assert program.status == 200, answer
    return answer


def list_kinds(usage: Any, *kinds: str) -> list[tuple[str, dict[str, Any]]]:
    return [
        (each["bucket_start"][11:13], each["event_info"])
        for each in usage["data"]
        if each["event_info"]["type"] in kinds
    ]


class History:
    """A run of a program with passes, samples and checkpoints at hours of one day."""

    def __init__(self, program: Program, base_model: BaseModel) -> None:
        self.program = program
        self.base_model = base_model
        self.run = make_run(program.actor, base_model)
        assert self.run.session is not None
        self.session = self.run.session
        Run.objects.update(created_at=START - HOUR)
        Session.objects.update(user_metadata={"recipe": "sft"})
        self.sampler = calls.open_sampling_session(
            session=self.session, seq_id=0, base_model=base_model
        )

    def train(self, seq: int, hour: float, num_tokens: int, status: str = "done") -> None:
        Operation.objects.create(
            run=self.run,
            seq=seq,
            kind="forward_backward",
            status=status,
            num_tokens=num_tokens,
            finished_at=START + hour * HOUR,
        )

    def sample(self, seq_id: int, hour: float, prompt: int, cached: int, sampled: int) -> None:
        call = calls.submit_call(
            project=self.run.project,
            purpose="tinker",
            base_model=self.base_model,
            sampling_session=self.sampler,
            seq_id=seq_id,
            payload={},
        )
        calls.claim_calls(worker="w", limit=1)
        num_tokens = {
            "num_prompt_tokens": prompt,
            "num_cached_tokens": cached,
            "num_sampled_tokens": sampled,
        }
        calls.finish_call(call, worker="w", result=b"", content_type="x", num_tokens=num_tokens)
        SamplingCall.objects.filter(pk=call.pk).update(finished_at=START + hour * HOUR)

    def save(self, name: str, hour: float, size: int, until: float | None = None) -> None:
        deleted_at = None if until is None else START + until * HOUR
        checkpoint = make_checkpoint(self.run, name=name, size_bytes=size, deleted_at=deleted_at)
        Checkpoint.objects.filter(pk=checkpoint.pk).update(created_at=START + hour * HOUR)


@pytest.fixture
def history(program: Program, base_model: BaseModel) -> History:
    return History(program, base_model)


def test_training_is_summed_by_the_hour(history: History) -> None:
    history.train(1, 0.1, 100)
    history.train(2, 0.9, 20)
    history.train(3, 5.5, 7)
    history.train(4, 5.5, 1000, status="failed")
    history.train(5, 24.0, 1000)
    history.train(6, -0.1, 1000)
    usage = read_usage(history.program)
    assert list_kinds(usage, "training") == [
        ("00", {"type": "training", "token_count": 120}),
        ("05", {"type": "training", "token_count": 7}),
    ]
    first = usage["data"][0]
    assert first["base_model"] == "tiny-chatml-1m"
    assert first["user_name"] == "alice"
    assert first["user_id"] == history.program.actor.user.urn
    assert first["session_id"] == history.session.pk
    assert first["project_id"] == history.program.actor.project.pk
    assert first["estimated_cost_usd"] is None
    assert usage["sessions"] == {history.session.pk: {"user_metadata": {"recipe": "sft"}}}


def test_sampling_tells_what_was_read_from_a_cache(history: History) -> None:
    history.sample(0, 1.0, prompt=10, cached=4, sampled=30)
    history.sample(1, 1.5, prompt=5, cached=0, sampled=2)
    prefill = {"type": "sampling_prefill"}
    assert list_kinds(read_usage(history.program), "sampling_prefill", "sampling_sample") == [
        ("01", {"type": "sampling_sample", "token_count": 32}),
        ("01", {**prefill, "cached": False, "token_count": 11}),
        ("01", {**prefill, "cached": True, "token_count": 4}),
    ]


def test_usage_outlives_the_calls_and_clients_that_made_it(history: History) -> None:
    for seq_id in range(4):
        history.sample(seq_id, 1.0 + seq_id % 2, prompt=10, cached=4, sampled=30)
    before = read_usage(history.program)
    assert forget_calls(limit=3) == 3
    assert read_usage(history.program) == before
    assert forget_calls() == 1
    assert not SamplingCall.objects.exists()
    assert read_usage(history.program) == before
    assert SampledHour.objects.count() == 3
    SamplingSession.objects.all().delete()
    Session.objects.all().delete()
    after = read_usage(history.program)
    assert (after["data"], after["sessions"]) == (before["data"], {})


def test_checkpoints_are_counted_when_made_and_weighed_while_they_last(history: History) -> None:
    history.save("a", 1.5, 10**9, until=4.25)
    history.save("b", 1.5, 2 * 10**9, until=1.75)
    history.save("c", -5, 3 * 10**9, until=0.5)
    usage = read_usage(history.program)
    assert list_kinds(usage, "checkpoint") == [("01", {"type": "checkpoint", "count": 2})]
    stored = [(hour, info["gigabyte_hours"]) for hour, info in list_kinds(usage, "storage")]
    assert stored == [
        ("00", pytest.approx(1.5)),
        ("01", pytest.approx(1.0)),
        ("02", pytest.approx(1.0)),
        ("03", pytest.approx(1.0)),
        ("04", pytest.approx(0.25)),
    ]


def test_what_is_not_deleted_is_weighed_until_now(history: History) -> None:
    this_hour = now().replace(minute=0, second=0, microsecond=0)
    history.save("a", -5, 10**9)
    usage = read_usage(history.program, this_hour - HOUR, hours=24)
    stored = [info["gigabyte_hours"] for _, info in list_kinds(usage, "storage")]
    assert stored[0] == pytest.approx(1.0)
    assert len(stored) <= 2
    assert sum(stored) <= 2.0


def test_usage_of_others_is_not_seen(history: History, stranger: Program) -> None:
    history.train(1, 0.1, 100)
    history.sample(0, 1.0, prompt=10, cached=4, sampled=30)
    history.save("a", 1.5, 1000)
    empty: dict[str, Any] = {"data": [], "sessions": {}, "cost_data_through": None}
    assert read_usage(stranger) == empty
    assert read_usage(history.program, START - 48 * HOUR) == empty


def test_usage_costs_the_same_queries_however_much_it_was(history: History) -> None:
    def count() -> int:
        with CaptureQueriesContext(connection) as captured:
            read_usage(history.program)
        return len(captured)

    history.train(0, 0.5, 10)
    history.sample(0, 0.5, prompt=10, cached=4, sampled=30)
    history.save("first", 0.5, 100)
    count()  # the key is looked up once
    few = count()
    for index in range(1, 9):
        history.train(index, index, 10)
        history.sample(index, index, prompt=10, cached=4, sampled=30)
        history.save(f"c{index}", index, 100)
    assert count() == few


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "starting_on"),
        ("starting_on=soon&ending_before=later", "starting_on"),
        ("starting_on=2026-07-13T00:00:00&ending_before=2026-07-14T00:00:00Z", "with its zone"),
        ("starting_on=2026-07-13T00:30:00Z&ending_before=2026-07-14T00:00:00Z", "whole hour"),
        ("starting_on=2026-07-13T00:00:00Z&ending_before=2026-07-13T00:00:01Z", "whole hour"),
        ("starting_on=2026-07-13T00:00:00Z&ending_before=2026-07-13T00:00:00Z", "14 days"),
        ("starting_on=2026-07-13T00:00:00Z&ending_before=2026-07-27T01:00:00Z", "14 days"),
        ("starting_on=2026-07-13T00:00:00Z&ending_before=2026-07-12T00:00:00Z", "14 days"),
        ("starting_on=9998-01-01T00:00:00Z&ending_before=9998-01-02T00:00:00Z", "future"),
        ("starting_on=2026-13-13T00:00:00Z&ending_before=2026-07-12T00:00:00Z", "starting_on"),
    ],
)
def test_a_window_that_is_none_is_refused(program: Program, query: str, said: str) -> None:
    answer = program.read(f"billing/usage/events?{query}")
    assert (program.status, said in answer["detail"]) == (400, True)


def test_a_window_in_another_zone_is_the_same_hours(history: History) -> None:
    history.train(1, 0.1, 100)
    path = "starting_on=2026-07-13T02:00:00%2B02:00&ending_before=2026-07-13T05:00:00%2B02:00"
    usage = history.program.read(f"billing/usage/events?{path}")
    assert [each["bucket_start"] for each in usage["data"]] == ["2026-07-13T00:00:00+00:00"]


def test_what_lies_on_the_disk_now_is_summed_by_user(history: History, stranger: Program) -> None:
    history.save("a", 1, 10**9)
    history.save("b", 1, 5 * 10**8)
    history.save("gone", 1, 10**9, until=2)
    answer = history.program.read("billing/usage/checkpoints/current")
    user, project = history.program.actor.user, history.program.actor.project
    assert answer == {
        "effective_rate_usd_per_gigabyte_month": None,
        "data": [
            {
                "project_id": project.pk,
                "org_user_urn": user.urn,
                "user_email": None,
                "user_name": "alice",
                "checkpoint_count": 2,
                "size_bytes": 15 * 10**8,
                "size_gigabytes": 1.5,
                "estimated_monthly_cost_usd": None,
            }
        ],
    }
    path = f"billing/usage/checkpoints/current?project_id={project.pk}"
    assert history.program.read(path) == answer
    assert "no project" in stranger.read(path)["detail"]
    assert stranger.status == 404


def list_events(program: Program, query: str = "") -> list[str]:
    answer = program.read(f"audit?{query}")
    assert program.status == 200, answer
    return [each["event"] for each in answer["entries"]]


def test_changes_are_audited_in_order(history: History, stranger: Program) -> None:
    program = history.program
    add_member(actor=program.actor, username=stranger.actor.user.username, role="viewer")
    history.save("a", 1, 10)
    model_id = history.run.model_id
    path = f"training_runs/{model_id}/checkpoints/sampler_weights/a"
    program.send("POST", f"{path}/publish", {})
    program.send("DELETE", f"{path}/publish", {})
    program.send("PUT", f"{path}/ttl", {"ttl_seconds": 7200})
    Session.objects.update(finished_at=now())
    program.send("DELETE", path, {})
    assert program.status == 204
    wanted = ["published", "unpublished", "ttl_set", "deleted"]
    events = [f"checkpoint_{each}" for each in wanted]
    assert list_events(program, "event_type=checkpoints") == events
    assert list_events(program, "event_type=projects") == ["project_created"]
    assert list_events(program, "event_type=teams") == ["member_added"]
    assert list_events(program, "event_type=organizations") == ["key_created"]
    assert list_events(program) == ["project_created", "key_created", "member_added", *events]
    entry = program.read("audit?event_type=checkpoints")["entries"][-1]
    assert entry["event_details"]["user"] == "alice"
    assert entry["tinker_path"] == f"tinker://{model_id}/sampler_weights/a"


def test_a_key_that_is_revoked_twice_is_one_entry(program: Program) -> None:
    other = Program(program.actor)
    revoke_key(actor=program.actor, key_id=other.key.pk)
    revoke_key(actor=program.actor, key_id=other.key.pk)
    assert list_events(program).count("key_revoked") == 1


def test_a_run_that_a_person_stops_is_an_entry(history: History) -> None:
    request_stop(actor=history.program.actor, run=history.run)
    assert list_events(history.program, "event_type=projects")[-1] == "run_stopped"


def test_an_audit_is_of_one_day(program: Program) -> None:
    yesterday = now() - timedelta(days=1)
    AuditEntry.objects.update(at=yesterday)
    assert list_events(program) == []
    assert list_events(program, f"day={yesterday:%Y-%m-%d}") == ["project_created", "key_created"]


def test_an_audit_is_for_owners_of_its_project(program: Program, stranger: Program) -> None:
    viewer = Program(make_viewer(program.actor))
    assert "Only an owner" in viewer.read("audit")["detail"]
    assert viewer.status == 403
    assert list_events(stranger) == ["project_created", "key_created"]


@pytest.mark.parametrize(
    "query", ["day=today", "day=2026-02-30", "day=0001-01-01", "event_type=none", "event_type="]
)
def test_an_audit_of_nonsense_is_refused(program: Program, query: str) -> None:
    answer = program.read(f"audit?{query}")
    assert (program.status, query.split("=", maxsplit=1)[0] in answer["detail"]) == (400, True)


def test_every_event_type_of_the_sdk_is_known() -> None:
    assert set(EVENT_TYPES) == {"all", "checkpoints", "projects", "teams", "organizations"}
