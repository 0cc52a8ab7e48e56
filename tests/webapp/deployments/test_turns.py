"""Programs take turns: whoever came first, or asked for most, holds up nobody."""

from collections import Counter
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.webapp.deployments.test_calls import PAYLOAD
from webapp.accounts.models import Actor
from webapp.core.errors import TooMany
from webapp.deployments import calls, turns
from webapp.deployments.models import SamplingCall
from webapp.deployments.turns import Line, share_out
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run, Session

Purpose = SamplingCall.Purpose


class Queue:
    """Programs of one project, each with calls that wait."""

    def __init__(self, actor: Actor, base_model: BaseModel) -> None:
        self.actor = actor
        self.base_model = base_model

    def add(self, num_calls: int, num_samplers: int = 1) -> Session:
        """One program, whose calls come through several sampling clients."""
        session = Session.objects.create(project=self.actor.project, user=self.actor.user)
        rows = []
        for seq_id in range(num_samplers):
            opened = calls.open_sampling_session(
                session=session, seq_id=seq_id, base_model=self.base_model
            )
            rows += [
                self.make(sampling_session=opened, seq_id=each)
                for each in range(num_calls // num_samplers)
            ]
        calls.submit_calls(rows)
        return session

    def make(self, **columns: Any) -> SamplingCall:
        defaults: dict[str, Any] = {"purpose": Purpose.TINKER, "digest": "d", "payload": PAYLOAD}
        owned = {"project": self.actor.project, "base_model": self.base_model}
        return SamplingCall(**defaults | owned | columns)


@pytest.fixture
def queue(alice: Actor, base_model: BaseModel) -> Queue:
    return Queue(alice, base_model)


def count_by_owner(claimed: list[SamplingCall]) -> Counter[str]:
    return Counter(call.owner for call in claimed)


def test_a_program_that_comes_later_gets_half_of_the_places(queue: Queue) -> None:
    first, second = queue.add(30), queue.add(30)
    claimed = calls.claim_calls(worker="a", limit=10)
    assert count_by_owner(claimed) == {first.pk: 5, second.pk: 5}


def test_a_place_that_gets_free_goes_to_whoever_holds_fewest(queue: Queue) -> None:
    first = queue.add(30)
    calls.claim_calls(worker="a", limit=8)
    second = queue.add(30)
    claimed = calls.claim_calls(worker="a", limit=8)
    assert count_by_owner(claimed) == {second.pk: 8}
    assert count_by_owner(calls.claim_calls(worker="a", limit=2)) == {first.pk: 1, second.pk: 1}


def test_a_program_gets_no_more_by_opening_more_sampling_clients(queue: Queue) -> None:
    many, one = queue.add(40, num_samplers=10), queue.add(40)
    claimed = calls.claim_calls(worker="a", limit=10)
    assert count_by_owner(claimed) == {many.pk: 5, one.pk: 5}


def test_places_that_others_leave_are_used(queue: Queue) -> None:
    few, many = queue.add(2), queue.add(30)
    claimed = calls.claim_calls(worker="a", limit=10)
    assert count_by_owner(claimed) == {few.pk: 2, many.pk: 8}


def test_calls_of_one_program_are_taken_in_order_of_arrival(queue: Queue) -> None:
    queue.add(6)
    taken = [call.seq_id for _ in range(3) for call in calls.claim_calls(worker="a", limit=2)]
    assert taken == [0, 1, 2, 3, 4, 5]


def test_what_is_watched_goes_first_whoever_waits(queue: Queue) -> None:
    queue.add(30)
    calls.submit_calls([queue.make(purpose=Purpose.PLAYGROUND)])
    (claimed,) = calls.claim_calls(worker="a", limit=1)
    assert claimed.purpose == Purpose.PLAYGROUND


def test_runs_and_evaluations_take_turns_by_themselves(queue: Queue, run: Run) -> None:
    program = queue.add(30)
    about = {"evaluation": "eval-1", "index": 0}
    of_evaluation = [queue.make(purpose=Purpose.EVALUATION, about=about) for _ in range(30)]
    of_run = [queue.make(purpose=Purpose.RUN_SAMPLE, run=run) for _ in range(30)]
    calls.submit_calls(of_evaluation + of_run)
    claimed = calls.claim_calls(worker="a", limit=9)
    assert count_by_owner(claimed) == {program.pk: 3, "eval-1": 3, run.pk: 3}


def test_a_claim_reads_as_many_rows_and_queries_however_many_wait(queue: Queue) -> None:
    for _ in range(4):
        queue.add(500)
    with CaptureQueriesContext(connection) as captured:
        assert len(calls.claim_calls(worker="a", limit=3)) == 3
    # Lines, what is held, the claim itself, its rows and the names of their base models.
    assert len(captured) == 5


def test_the_lines_are_read_from_the_index_of_waiting_calls_alone(queue: Queue) -> None:
    queue.add(3)
    waiting = SamplingCall.objects.filter(status="queued")
    sql = str(turns._list_lines(waiting).query).replace("= queued", "= 'queued'")
    is_sqlite = connection.vendor == "sqlite"
    with connection.cursor() as cursor:
        if not is_sqlite:
            cursor.execute("SET LOCAL enable_seqscan = off")  # three rows are not worth an index
        cursor.execute(f"EXPLAIN QUERY PLAN {sql}" if is_sqlite else f"EXPLAIN {sql}")
        plan = "".join(str(row[-1]) for row in cursor.fetchall()).lower()
    assert ("using covering index waiting_calls" if is_sqlite else "waiting_calls") in plan


def test_shares_are_even_and_never_more_than_what_waits() -> None:
    lines = [Line("tinker", "a", 1, 100), Line("tinker", "b", 2, 1), Line("tinker", "c", 3, 100)]
    shares = share_out(lines, Counter(a=4), 8)
    assert {line.owner: share for line, share in shares.items()} == {"a": 2, "b": 1, "c": 5}
    assert share_out(lines, Counter(), 0) == {}


def test_a_program_with_thousands_of_waiting_samples_is_asked_to_wait(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "MOST_WAITING", 10)
    full, other = queue.add(10), queue.add(9)
    with pytest.raises(TooMany, match="10 samples of this session wait already"):
        turns.check_room(full.pk)
    turns.check_room(other.pk)
    calls.claim_calls(worker="a", limit=2)
    turns.check_room(full.pk)
