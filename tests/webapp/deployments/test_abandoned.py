"""Samples that nobody looks for any more: of closed clients, of killed ones, of stopped runs."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils.timezone import now

from tests.webapp.deployments.test_turns import Queue
from webapp.accounts.models import Actor
from webapp.deployments import abandoned, calls
from webapp.deployments.models import SamplingCall, SamplingSession
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run, Session

Status = SamplingCall.Status


@pytest.fixture
def queue(alice: Actor, base_model: BaseModel) -> Queue:
    return Queue(alice, base_model)


def silence(session: Session, seconds: int) -> None:
    heard_at = now() - timedelta(seconds=seconds)
    Session.objects.filter(pk=session.pk).update(heartbeat_at=heard_at)


def list_statuses(session: Session) -> list[str]:
    mine = SamplingCall.objects.filter(owner=session.pk)
    return list(mine.values_list("status", flat=True))


def test_waiting_samples_of_a_client_that_has_closed_are_cancelled(queue: Queue) -> None:
    closed, other = queue.add(3), queue.add(3)
    assert abandoned.cancel_unwanted() == 0
    Session.objects.filter(pk=closed.pk).update(finished_at=now())
    assert abandoned.cancel_unwanted() == 3
    assert list_statuses(closed) == [Status.CANCELLED] * 3
    assert list_statuses(other) == [Status.QUEUED] * 3


def test_waiting_samples_of_a_stopped_run_are_cancelled(queue: Queue, run: Run) -> None:
    calls.submit_calls([queue.make(purpose="run_sample", run=run)])
    assert abandoned.cancel_unwanted() == 0
    Run.objects.update(status=Run.Status.CANCELLED)
    assert abandoned.cancel_unwanted() == 1


def test_nobody_waits_behind_the_samples_of_a_program_that_was_killed(queue: Queue) -> None:
    killed, alive = queue.add(4, num_samplers=2), queue.add(2)
    running = calls.claim_calls(worker="a", limit=2)
    silence(killed, 121)
    silence(alive, 119)
    assert abandoned.drop_lost() == 4
    assert list_statuses(killed) == [Status.LOST] * 4
    assert sorted(list_statuses(alive)) == [Status.QUEUED, Status.RUNNING]
    held = calls.renew_claims(worker="a", pks=[call.pk for call in running])
    assert held == {call.pk for call in running if call.owner == alive.pk}
    assert [call.owner for call in calls.claim_calls(worker="b", limit=9)] == [alive.pk]


def test_what_is_dropped_is_an_event_of_its_sampling_session(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[str] = []
    monkeypatch.setattr(abandoned, "wake", woken.append)
    killed = queue.add(6, num_samplers=2)
    silence(killed, 300)
    abandoned.drop_lost()
    samplers = SamplingSession.objects.all()
    assert set(samplers.values_list("num_ended", flat=True)) == {1}
    assert set(SamplingCall.objects.values_list("end_number", flat=True)) == {1}
    assert sorted(woken) == sorted(samplers.values_list("pk", flat=True))


def test_a_result_that_was_stored_is_not_dropped(queue: Queue) -> None:
    killed = queue.add(2)
    (call,) = calls.claim_calls(worker="a", limit=1)
    calls.finish_call(call, worker="a", result=b"r", content_type="x")
    silence(killed, 300)
    assert abandoned.drop_lost() == 1
    assert list_statuses(killed) == [Status.DONE, Status.LOST]
    assert abandoned.drop_lost() == 0


def test_looking_costs_one_query_for_each_kind_while_nothing_waits(
    queue: Queue, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(3):
        abandoned.cancel_unwanted()
        abandoned.drop_lost()
