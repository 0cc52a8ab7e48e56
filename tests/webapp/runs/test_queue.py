"""The operation log: order, idempotency, leases, gaps and replay."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils.timezone import now

from tests.webapp.cast import make_actor, make_run
from webapp.core.errors import UserError
from webapp.runs import queue
from webapp.runs.models import Operation, Run
from webapp.runs.outcomes import read_outcomes
from webapp.runs.refusals import fail_passed, refuse_operation

pytestmark = pytest.mark.django_db

Kind = Operation.Kind
Status = Operation.Status


@pytest.fixture
def run() -> Run:
    return make_run(make_actor())


def submit(run: Run, seq: int, kind: str = Kind.OPTIM_STEP) -> Operation:
    return queue.submit_operation(run, seq=seq, kind=kind, payload=f"bytes {seq}".encode())


def execute(run: Run, worker: str = "w1") -> list[int]:
    """One turn of a worker that holds the lease: which seqs it was given."""
    operations = queue.next_operations(run, worker=worker)
    for operation in operations:
        assert queue.finish_operation(operation, worker=worker, result=b"r", content_type="t")
    return [operation.seq for operation in operations]


def make_old(run: Run) -> None:
    Operation.objects.filter(run=run).update(created_at=now() - timedelta(seconds=121))


def test_the_same_seq_and_bytes_return_the_first_row(run: Run) -> None:
    assert submit(run, 0).pk == submit(run, 0).pk
    assert Operation.objects.count() == 1


def test_the_same_seq_with_other_bytes_is_refused(run: Run) -> None:
    submit(run, 0)
    with pytest.raises(UserError, match="seq_id 0 was already used"):
        queue.submit_operation(run, seq=0, kind=Kind.OPTIM_STEP, payload=b"other")


def test_the_same_bytes_as_another_kind_are_refused(run: Run) -> None:
    submit(run, 0)
    with pytest.raises(UserError, match="already used"):
        submit(run, 0, Kind.SAVE_WEIGHTS)


def test_a_retry_after_the_end_returns_the_first_row(run: Run) -> None:
    first = submit(run, 0)
    queue.lease_run(run, worker="w1")
    execute(run)
    run.refresh_from_db()
    assert submit(run, 0).pk == first.pk


def test_a_seq_out_of_range_is_refused(run: Run) -> None:
    for seq in (-1, 2**31):
        with pytest.raises(UserError, match="out of range"):
            submit(run, seq)


def test_operations_run_in_order_whatever_order_they_came_in(run: Run) -> None:
    queue.lease_run(run, worker="w1")
    for seq in (2, 3, 1):
        submit(run, seq)
    assert execute(run) == []
    submit(run, 0)
    assert [execute(run) for _ in range(5)] == [[0], [1], [2], [3], []]


def test_forward_backwards_come_as_a_series_with_the_step_after_it(run: Run) -> None:
    queue.lease_run(run, worker="w1")
    for seq, kind in enumerate([Kind.FORWARD_BACKWARD] * 3 + [Kind.OPTIM_STEP] * 2):
        submit(run, seq, kind)
    assert [execute(run) for _ in range(4)] == [[0, 1, 2, 3], [4], [], []]


def test_what_is_running_is_not_given_out_again(run: Run) -> None:
    queue.lease_run(run, worker="w1")
    submit(run, 0, Kind.FORWARD_BACKWARD)
    assert len(queue.next_operations(run, worker="w1")) == 1
    submit(run, 1, Kind.FORWARD_BACKWARD)
    assert queue.next_operations(run, worker="w1") == []
    assert queue.find_work("w1") == []


def test_a_series_may_end_in_any_order(run: Run) -> None:
    queue.lease_run(run, worker="w1")
    for seq in range(3):
        submit(run, seq, Kind.FORWARD_BACKWARD)
    for operation in reversed(queue.next_operations(run, worker="w1")):
        assert queue.finish_operation(operation, worker="w1", result=b"", content_type="")
    run.refresh_from_db()
    assert run.done_seq == 2


def test_a_refused_seq_is_not_waited_for(run: Run) -> None:
    queue.lease_run(run, worker="w1")
    submit(run, 0)
    submit(run, 2)
    refuse_operation(run, seq=1, kind=Kind.OPTIM_STEP, error="no")
    assert [execute(run) for _ in range(3)] == [[0], [2], []]


def test_a_refusal_that_is_next_in_line_frees_what_waits(run: Run) -> None:
    submit(run, 1)
    refuse_operation(run, seq=0, kind=Kind.OPTIM_STEP, error="no")
    assert queue.find_work("w1") == [run]


def test_a_refused_seq_is_refused_again_with_its_reason(run: Run) -> None:
    refuse_operation(run, seq=0, kind=Kind.OPTIM_STEP, error="datum 3 is empty")
    with pytest.raises(UserError, match="datum 3 is empty"):
        submit(run, 0)


def test_a_failed_operation_does_not_stop_the_log(run: Run) -> None:
    queue.lease_run(run, worker="w1")
    submit(run, 0)
    submit(run, 1)
    (operation,) = queue.next_operations(run, worker="w1")
    assert queue.fail_operation(operation, worker="w1", error="too large", category="user")
    assert execute(run) == [1]


def test_only_one_worker_holds_a_run(run: Run) -> None:
    assert queue.lease_run(run, worker="w1")
    assert queue.lease_run(run, worker="w1")
    assert not queue.lease_run(run, worker="w2")
    assert queue.release_run(run, worker="w1")
    assert queue.lease_run(run, worker="w2")


def test_an_expired_lease_is_free(run: Run) -> None:
    queue.lease_run(run, worker="w1")
    Run.objects.update(lease_until=now() - timedelta(seconds=1))
    assert queue.lease_run(run, worker="w2")


def test_a_worker_that_lost_its_lease_cannot_store_a_result(run: Run) -> None:
    queue.lease_run(run, worker="w1")
    submit(run, 0)
    (operation,) = queue.next_operations(run, worker="w1")
    Run.objects.update(lease_until=now() - timedelta(seconds=1))
    assert queue.lease_run(run, worker="w2")
    assert not queue.finish_operation(operation, worker="w1", result=b"late", content_type="t")
    assert not queue.fail_operation(operation, worker="w1", error="late", category="server")
    operation.refresh_from_db()
    assert (operation.status, operation.result) == (Status.RUNNING, None)


def test_a_result_is_stored_once(run: Run) -> None:
    queue.lease_run(run, worker="w1")
    submit(run, 0)
    (operation,) = queue.next_operations(run, worker="w1")
    assert queue.finish_operation(operation, worker="w1", result=b"1", content_type="t")
    assert not queue.finish_operation(operation, worker="w1", result=b"2", content_type="t")
    assert read_outcomes([operation.request_id])[operation.request_id].result == b"1"


def test_a_worker_without_the_lease_is_given_nothing(run: Run) -> None:
    submit(run, 0)
    assert queue.next_operations(run, worker="w1") == []
    assert Operation.objects.get().status == Status.QUEUED


def test_what_a_dead_worker_had_begun_runs_again(run: Run) -> None:
    queue.lease_run(run, worker="w1")
    submit(run, 0)
    queue.next_operations(run, worker="w1")
    Run.objects.update(lease_until=now() - timedelta(seconds=1))
    queue.lease_run(run, worker="w2")
    assert queue.requeue_running(run, worker="w1") == 0
    assert queue.requeue_running(run, worker="w2") == 1
    assert execute(run, "w2") == [0]


def test_a_dead_workers_runs_are_free_once_their_leases_have_ended(run: Run) -> None:
    queue.lease_run(run, worker="w1")
    submit(run, 0)
    queue.next_operations(run, worker="w1")
    assert queue.free_expired() == 0
    assert queue.find_work("w2") == []
    Run.objects.update(lease_until=now() - timedelta(seconds=1))
    assert queue.free_expired() == 1
    assert queue.find_work("w2") == [run]


def test_a_worker_that_starts_again_under_its_name_frees_what_it_held(run: Run) -> None:
    queue.lease_run(run, worker="w1")
    submit(run, 0)
    queue.next_operations(run, worker="w1")
    queue.release_worker(worker="w1")
    assert queue.find_work("w2") == [run]
    assert Operation.objects.get().status == Status.QUEUED


def test_work_is_found_oldest_first_and_not_where_another_worker_is() -> None:
    actor = make_actor()
    first = make_run(actor)
    second = make_run(actor, first.base_model)
    third = make_run(actor, first.base_model)
    for run in (second, first, third):
        submit(run, 0)
    queue.lease_run(third, worker="other")
    assert queue.find_work("w1") == [second, first]


def test_a_gap_fails_what_waits_for_it_and_names_the_missing_seq(run: Run) -> None:
    queue.lease_run(run, worker="w1")
    submit(run, 0)
    execute(run)
    late = submit(run, 3)
    make_old(run)
    assert queue.fail_gaps() == 1
    outcome = read_outcomes([late.request_id])[late.request_id]
    assert outcome.category == "user"
    assert "seq_id 1 did not arrive" in outcome.error
    submit(run, 4)
    assert execute(run) == [4]


def test_a_gap_is_given_time(run: Run) -> None:
    submit(run, 1)
    assert queue.fail_gaps() == 0
    assert Operation.objects.get().status == Status.QUEUED


def test_what_waits_for_a_running_operation_waits_for_no_gap(run: Run) -> None:
    queue.lease_run(run, worker="w1")
    submit(run, 0)
    queue.next_operations(run, worker="w1")
    submit(run, 1)
    make_old(run)
    assert queue.fail_gaps() == 0


def test_a_missing_seq_that_comes_after_the_deadline_is_refused(run: Run) -> None:
    submit(run, 1)
    make_old(run)
    queue.fail_gaps()
    run.refresh_from_db()
    with pytest.raises(UserError, match="seq_id 0 came too late"):
        submit(run, 0)


def test_one_that_comes_while_the_log_goes_past_it_is_ended_and_not_waited_for(run: Run) -> None:
    submit(run, 1)
    make_old(run)
    queue.fail_gaps()
    late = submit(run, 0)  # whose view had read the run a moment earlier
    assert late.status == Status.QUEUED
    assert (fail_passed(), fail_passed()) == (1, 0)
    outcome = read_outcomes([late.request_id])[late.request_id]
    assert (outcome.category, "seq_id 0 came too late" in outcome.error) == ("user", True)


def test_what_a_stopped_recipe_asked_for_ahead_is_ended(run: Run) -> None:
    queue.lease_run(run, worker="w1")
    for seq in range(3):
        submit(run, seq)
    (running,) = queue.next_operations(run, worker="w1")
    assert queue.fail_waiting(run, error="The run was stopped.", category="user") == 2
    assert queue.finish_operation(running, worker="w1", result=b"", content_type="")
    run.refresh_from_db()
    assert run.done_seq == 2


def test_a_replay_has_what_changed_weights_since_the_autosave(run: Run) -> None:
    queue.lease_run(run, worker="w1")
    kinds = [Kind.CREATE_MODEL, Kind.FORWARD_BACKWARD, Kind.OPTIM_STEP, Kind.SAVE_WEIGHTS]
    for seq, kind in enumerate(kinds * 2):
        submit(run, seq, kind)
    for _ in range(7):
        execute(run)
    assert [operation.seq for operation in queue.find_replay(run)] == [0, 1, 2, 4, 5, 6]
    assert queue.cover_operations(run, seq=3, path="autosaves/x")
    replay = queue.find_replay(run)
    assert [operation.seq for operation in replay] == [4, 5, 6]
    assert all(operation.payload for operation in replay)
    assert Operation.objects.filter(payload=None).count() == 4


def test_an_older_autosave_does_not_replace_a_newer_one(run: Run) -> None:
    assert queue.cover_operations(run, seq=5, path="new")
    assert not queue.cover_operations(run, seq=3, path="old")
    run.refresh_from_db()
    assert (run.autosave_seq, run.autosave_path) == (5, "new")


def test_outcomes_of_unknown_and_malformed_ids_are_left_out(run: Run) -> None:
    operation = submit(run, 0)
    wanted = [operation.request_id, "op-999999", "op-", "op-x", "call-1", "", "op-" + "9" * 30]
    outcomes = read_outcomes(wanted)
    assert list(outcomes) == [operation.request_id]
    assert not outcomes[operation.request_id].is_over


def test_a_lease_is_written_again_only_in_its_second_half(run: Run) -> None:
    assert queue.lease_run(run, worker="w1")
    until = run.lease_until
    assert queue.lease_run(run, worker="w1")
    run.refresh_from_db()
    assert run.lease_until == until
    Run.objects.update(lease_until=now() + queue.LEASE / 3)
    run.refresh_from_db()
    assert queue.lease_run(run, worker="w1")
    run.refresh_from_db()
    assert until is not None
    assert run.lease_until is not None
    assert run.lease_until >= until


def test_only_an_operation_whose_turn_it_is_wakes_a_worker(
    run: Run, monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: Any
) -> None:
    kicks: list[str] = []
    monkeypatch.setattr(queue, "send_task", lambda *_, queue: kicks.append(queue))
    with django_capture_on_commit_callbacks(execute=True):
        submit(run, 0)
    assert len(kicks) == 1
    with django_capture_on_commit_callbacks(execute=True):
        submit(run, 1)
        submit(run, 2)
    assert len(kicks) == 1
    queue.lease_run(run, worker="w1")
    while execute(run):
        pass
    with django_capture_on_commit_callbacks(execute=True):
        submit(run, 3)
    assert len(kicks) == 2
