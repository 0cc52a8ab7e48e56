"""Requests that take a place in a run's log and are never executed."""

from hashlib import sha256

from django.db import transaction
from django.db.models import F
from django.utils.timezone import now

from webapp.core.events import wake
from webapp.runs.models import Operation, Run
from webapp.runs.queue import MAX_SEQ, advance, check_seq, describe_late, find_first, kick

Status = Operation.Status


def refuse_operation(
    run: Run, *, seq: int, kind: str, error: str, forward_only: bool = False
) -> None:
    """Note that this seq was answered with a 4xx: it never comes again, and nobody waits for it."""
    if 0 <= seq <= MAX_SEQ:
        columns = {"kind": kind, "forward_only": forward_only, "error": error, "digest": ""}
        _note(run, seq, {**columns, "status": Status.REFUSED})


def fail_on_arrival(
    run: Run, *, seq: int, kind: str, error: str, body: bytes, forward_only: bool = False
) -> Operation:
    """A promise that is broken already, for a client that takes a 4xx for its own end. The same
    body again gets the same promise.
    """
    check_seq(seq)
    digest = sha256(body).hexdigest()
    columns = {"kind": kind, "forward_only": forward_only, "error": error, "digest": digest}
    ended = {"status": Status.FAILED, "error_category": "user", "finished_at": now()}
    if seq > run.done_seq:
        operation, is_new = _note(run, seq, columns | ended)
        if is_new:
            return operation
    return find_first(Operation(run=run, seq=seq, kind=kind, digest=digest))


def fail_passed() -> int:
    """What was asked at the moment when the log went past its number, after waiting for it long."""
    passed = Operation.objects.filter(status=Status.QUEUED, seq__lte=F("run__done_seq"))
    return sum(_fail_passed(operation) for operation in passed.only("seq"))


def _fail_passed(operation: Operation) -> bool:
    waiting = Operation.objects.filter(pk=operation.pk, status=Status.QUEUED)
    with transaction.atomic():
        failed = waiting.update(
            status=Status.FAILED,
            error=describe_late(operation.seq),
            error_category="user",
            finished_at=now(),
        )
        wake(operation.request_id)
    return failed == 1


def _note(run: Run, seq: int, columns: dict[str, object]) -> tuple[Operation, bool]:
    """False: the place was taken."""
    with transaction.atomic():
        # First the run's row: whoever advances the log meanwhile waits, then sees this row.
        Run.objects.filter(pk=run.pk).update(last_request_at=now())
        operation, is_new = Operation.objects.get_or_create(run=run, seq=seq, defaults=columns)
        if is_new and advance(run.pk):
            kick(run)
    return operation, is_new
