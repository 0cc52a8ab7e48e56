"""Bytes of the log go a day after the end of their run, a bounded number at a time."""

from datetime import datetime, timedelta

import pytest
from django.utils.timezone import now

from tests.webapp.cast import make_actor, make_base_model, make_run
from webapp.accounts.models import Actor
from webapp.runs import queue
from webapp.runs.models import Operation, Run
from webapp.runs.outcomes import read_outcomes
from webapp.runs.retention import forget_logs

pytestmark = pytest.mark.django_db

LONG_AGO = now() - timedelta(days=1, minutes=1)


@pytest.fixture
def alice() -> Actor:
    return make_actor()


def make_log(actor: Actor, *, ended_at: datetime | None, number: int = 0) -> list[Operation]:
    """Three operations; the last has never been executed."""
    run = make_run(actor, make_base_model(f"model-{number}"), model_seq_id=number)
    rows = [queue.submit_operation(run, seq=n, kind="optim_step", payload=b"{}") for n in range(3)]
    assert queue.lease_run(run, worker="w")
    for _ in range(2):
        (operation,) = queue.next_operations(run, worker="w")
        queue.finish_operation(operation, worker="w", result=b"r", content_type="x")
    Run.objects.filter(pk=run.pk).update(ended_at=ended_at)
    return rows


def count_bytes(rows: list[Operation]) -> int:
    for row in rows:
        row.refresh_from_db()
    return sum(len(row.payload or b"") + len(row.result or b"") for row in rows)


def test_bytes_of_runs_that_ended_a_day_ago_are_forgotten(alice: Actor) -> None:
    old = make_log(alice, ended_at=LONG_AGO)
    fresh = make_log(alice, ended_at=now(), number=1)
    live = make_log(alice, ended_at=None, number=2)
    assert forget_logs() == 3
    assert count_bytes(old) == 0
    assert count_bytes(fresh) == count_bytes(live) > 0
    assert forget_logs() == 0


def test_a_turn_forgets_no_more_than_it_may_and_the_next_ones_the_rest(alice: Actor) -> None:
    logs = [make_log(alice, ended_at=LONG_AGO, number=number) for number in range(3)]
    assert [forget_logs(limit=4) for _ in range(4)] == [4, 4, 1, 0]
    assert sum(count_bytes(rows) for rows in logs) == 0
    assert not Run.objects.filter(forgotten_at=None).exists()


def test_a_forgotten_result_reads_as_a_failure_that_says_why(alice: Actor) -> None:
    rows = make_log(alice, ended_at=LONG_AGO)
    forget_logs()
    outcome = read_outcomes([rows[0].request_id])[rows[0].request_id]
    assert outcome.is_over
    assert (outcome.category, outcome.error.split(",")[0]) == (
        "user",
        "The result of this request was kept for a day after the end of its run",
    )
