"""The operation log as a queue: every change of ownership is one guarded UPDATE."""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from hashlib import sha256
from typing import Any, cast

from django.db import IntegrityError, transaction
from django.db.models import BigIntegerField, Case, Exists, F, OuterRef, Q, QuerySet, Value, When
from django.db.models.functions import Greatest
from django.utils.timezone import now

from webapp.core.dispatch import ANY_GPU_QUEUE, GPU_QUEUE, GPU_TURN, send_task
from webapp.core.errors import UserError
from webapp.core.events import call_worker, count_work, wake
from webapp.runs.models import Operation, Run

LEASE = timedelta(seconds=60)
GAP_DEADLINE = timedelta(seconds=120)  # the SDK's own retries of one request end after this
START = "#"  # between a worker's name and which start of it has the lease
SERIES = 64  # forward_backwards of one run that are handed out together
MAX_TRIES = 3  # of an operation by itself, after a worker has died with it
MAX_SEQ = 2**31 - 1  # an int32 on the Tinker wire

Kind = Operation.Kind
Status = Operation.Status

ENDED = (Status.DONE, Status.FAILED, Status.REFUSED)
# What changes weights, optimizer or gradients. Saves do not, so a replay leaves them out.
REPLAYED = (Kind.CREATE_MODEL, Kind.LOAD_WEIGHTS, Kind.FORWARD_BACKWARD, Kind.OPTIM_STEP)


def submit_operation(
    run: Run,
    *,
    seq: int,
    kind: str,
    payload: bytes,
    num_tokens: int = 0,
    forward_only: bool = False,
    identity: bytes | None = None,
) -> Operation:
    """Queue one operation; a retry with the same seq and bytes returns the first one.

    `identity` stands for the payload where a retry may differ in what does not matter.
    """
    check_seq(seq)
    operation = Operation(
        run=run,
        seq=seq,
        kind=kind,
        payload=payload,
        digest=sha256(
            identity or payload
        ).hexdigest(),  # outlives the payload, which is erased in time
        num_tokens=num_tokens,
        forward_only=forward_only,
    )
    if seq <= run.done_seq:
        return find_first(operation)
    try:
        with transaction.atomic():
            operation.save(force_insert=True)
    except IntegrityError:
        return find_first(operation)
    transaction.on_commit(partial(_kick_for, operation))
    return operation


def _kick_for(operation: Operation) -> None:
    """Only where nothing before it is to be done: who ends that goes on with this one by itself."""
    run, before = operation.run, operation.seq - 1
    if run.done_seq >= before or Run.objects.filter(pk=run.pk, done_seq__gte=before).exists():
        kick(run)


def check_seq(seq: int) -> None:
    if not 0 <= seq <= MAX_SEQ:
        raise UserError(f"seq_id {seq} is out of range: count from 1 upward.", field="seq_id")


def find_first(operation: Operation) -> Operation:
    """The row that has this seq already, where it asks for the same thing."""
    seq = operation.seq
    first = Operation.objects.filter(run=operation.run, seq=seq).defer("payload", "result").first()
    if first is None:
        raise UserError(describe_late(seq), field="seq_id")
    if first.status == Status.REFUSED:
        raise UserError(f"seq_id {seq} was refused already: {first.error}", field="seq_id")
    if (first.kind, first.digest) != (operation.kind, operation.digest):
        raise UserError(
            f"seq_id {seq} was already used for another request: send it with the next number.",
            field="seq_id",
        )
    first.run = operation.run
    return first


def name_holder(worker: str, start: str) -> str:
    """Who leases: a worker's name, and which start of it."""
    return f"{worker}{START}{start}"


def lease_run(run: Run, *, worker: str) -> bool:
    """Take or renew the run for this worker. False: another worker holds it.

    Half a lease is enough: whatever is written under it asks again whose the run is.
    """
    if run.worker == worker and run.lease_until and run.lease_until > now() + LEASE / 2:
        return True
    until = now() + LEASE
    taken = Run.objects.filter(_is_free_for(worker), pk=run.pk).update(
        worker=worker, lease_until=until
    )
    if taken:
        run.worker, run.lease_until = worker, until
    return taken == 1


def release_run(run: Run, *, worker: str) -> bool:
    """Give the run back, so that another worker need not wait for the lease to end."""
    held = Run.objects.filter(pk=run.pk, worker=worker)
    return held.update(worker="", lease_until=None) == 1


def release_worker(*, worker: str) -> None:
    """At a worker's start and orderly end: what it, or an earlier start of it, held is free."""
    mine = Q(worker=worker) | Q(worker__startswith=worker + START)
    held = Run.objects.filter(mine)
    with transaction.atomic():
        # The runs' rows first, as everywhere; what another worker has taken over stays with it.
        rows = held.order_by("pk").select_for_update()
        pks = list(rows.values_list("pk", flat=True))
        _requeue(Operation.objects.filter(mine, run__in=pks))
        held.filter(pk__in=pks).update(worker="", lease_until=None)


def requeue_running(run: Run, *, worker: str) -> int:
    """After taking a run over: what its last worker had begun waits again."""
    unfinished = Operation.objects.filter(run=run, seq__gt=run.done_seq, run__worker=worker)
    return _requeue(unfinished)


def free_expired() -> int:
    """A worker that died cannot say so: its runs are free once their leases have ended."""
    expired = Run.objects.filter(lease_until__lt=now()).exclude(worker="")
    return sum(_free(run) for run in expired)


def _free(run: Run) -> bool:
    """False: its worker has renewed the lease at the last moment, or lost it to another."""
    with transaction.atomic():
        same = Run.objects.filter(pk=run.pk, worker=run.worker, lease_until=run.lease_until)
        if same.update(worker="", lease_until=None) != 1:
            return False
        _requeue(Operation.objects.filter(run=run, seq__gt=run.done_seq))
    return True


def _requeue(operations: QuerySet[Operation]) -> int:
    running = operations.filter(status=Status.RUNNING)
    tries = Greatest(F("tries"), 1)  # whichever of them it was that the worker did not survive
    return running.update(status=Status.QUEUED, worker="", started_at=None, tries=tries)


def is_given_up(operation: Operation) -> bool:
    """Its worker has died with it often enough."""
    return operation.tries > MAX_TRIES


def note_try(operation: Operation) -> None:
    """Just before one that a worker had when it died is begun again."""
    if operation.tries:
        operation.tries += 1
        Operation.objects.filter(pk=operation.pk).update(tries=operation.tries)


def find_work(worker: str) -> list[Run]:
    """Runs whose next operation can be executed by this worker now, oldest waiting first."""
    is_free = Q(run__worker="") | Q(run__worker=worker) | Q(run__lease_until__lt=now())
    ready = Operation.objects.filter(is_free, status=Status.QUEUED, seq=F("run__done_seq") + 1)
    related = ready.select_related("run__base_model", "run__project")
    return [each.run for each in related.defer("payload", "result").order_by("created_at")]


def next_operations(run: Run, *, worker: str) -> list[Operation]:
    """Mark running, and return, what comes next in the log.

    Either a series of forward_backwards with the step after it, or one other operation. Empty: the
    next seq is missing or running, or the lease was lost.
    """
    chosen = _choose(_read_ahead(run))
    if not chosen:
        return []
    pks = [operation.pk for operation in chosen]
    started_at = now()
    marked = Operation.objects.filter(
        pk__in=pks, status=Status.QUEUED, run__in=Run.objects.filter(pk=run.pk, worker=worker)
    ).update(status=Status.RUNNING, worker=worker, started_at=started_at)
    if marked != len(pks):
        return []
    for operation in chosen:
        operation.run = run
        operation.status, operation.worker = Status.RUNNING, worker
        operation.started_at = started_at
    return chosen


def _read_ahead(run: Run) -> list[Operation]:
    """What follows the last ended operation, as far as it has come, in order and without gaps."""
    ahead = Operation.objects.filter(run=run, seq__gt=F("run__done_seq")).order_by("seq")
    found = ahead.defer("result").annotate(done=F("run__done_seq"))[:SERIES]
    contiguous = []
    for place, operation in enumerate(found, start=1):
        run.done_seq = cast(Any, operation).done
        if operation.seq != run.done_seq + place:
            break
        if operation.status not in ENDED:
            contiguous.append(operation)
    return contiguous


def _choose(ahead: Sequence[Operation]) -> list[Operation]:
    series: list[Operation] = []
    for operation in ahead:
        if operation.status != Status.QUEUED:
            break
        if operation.kind not in (Kind.FORWARD_BACKWARD, Kind.OPTIM_STEP):
            return series or [operation]
        series.append(operation)
        if operation.kind == Kind.OPTIM_STEP:
            break
    return series


def finish_operation(
    operation: Operation, *, worker: str, result: bytes, content_type: str
) -> bool:
    """Store the result. False: the lease was lost, and the result is dropped."""
    return _end(operation, worker, status=Status.DONE, result=result, content_type=content_type)


def fail_operation(operation: Operation, *, worker: str, error: str, category: str) -> bool:
    """`category`: user or server. False: the lease was lost, and nothing is written."""
    return _end(operation, worker, status=Status.FAILED, error=error, error_category=category)


def _end(operation: Operation, worker: str, **columns: object) -> bool:
    """The run's row first: its lock decides between a slow worker and the one that took over."""
    moment = now()
    seq = operation.seq
    next_seq = Case(
        When(done_seq=seq - 1, then=Value(seq, BigIntegerField())), default=F("done_seq")
    )
    with transaction.atomic():
        held = Run.objects.filter(pk=operation.run_id, worker=worker)
        if held.update(done_seq=next_seq, last_request_at=moment) != 1:
            return False
        mine = Operation.objects.filter(pk=operation.pk, status=Status.RUNNING, worker=worker)
        if mine.update(finished_at=moment, **columns) != 1:
            transaction.set_rollback(True)
            return False
        if Operation.objects.filter(run=operation.run_id, seq=seq + 1, status__in=ENDED).exists():
            advance(operation.run_id)
        wake(operation.request_id)
    return True


def advance(run_id: str) -> bool:
    """Move `done_seq` over what has ended behind it. True: it moved."""
    following = Operation.objects.filter(
        run=run_id, seq__gt=F("run__done_seq"), status__in=ENDED
    ).order_by("seq")
    reached = None
    for seq, done_seq in following.values_list("seq", "run__done_seq"):
        expected = done_seq + 1 if reached is None else reached + 1
        if seq != expected:
            break
        reached = seq
    if reached is None:
        return False
    return Run.objects.filter(pk=run_id, done_seq__lt=reached).update(done_seq=reached) == 1


def find_replay(run: Run) -> list[Operation]:
    """What was done since the autosave and changed the weights, in order."""
    done = Operation.objects.filter(run=run, status=Status.DONE, kind__in=REPLAYED)
    return list(done.filter(seq__gt=run.autosave_seq).defer("result").order_by("seq"))


def cover_operations(run: Run, *, seq: int, path: str) -> bool:
    """The autosave at `path` holds the log up to `seq`. False: a newer one is noted already."""
    with transaction.atomic():
        older = Run.objects.filter(pk=run.pk, autosave_seq__lt=seq)
        if older.update(autosave_seq=seq, autosave_path=path) != 1:
            return False
        covered = Operation.objects.filter(run=run, seq__lte=seq, payload__isnull=False)
        covered.update(payload=None)
    run.autosave_seq, run.autosave_path = seq, path
    return True


def fail_waiting(run: Run, *, error: str, category: str) -> int:
    """End everything of a run that waits, such as what a stopped recipe had asked for ahead."""
    with transaction.atomic():
        Run.objects.filter(pk=run.pk).update(last_request_at=now())
        failed = _fail_queued(run, error, category)
        advance(run.pk)
    return len(failed)


def _fail_queued(run: Run, error: str, category: str) -> list[int]:
    """Their seqs. Inside a transaction that has touched the run's row."""
    waiting = Operation.objects.filter(run=run, status=Status.QUEUED)
    rows = list(waiting.values_list("pk", "seq"))
    waiting.filter(pk__in=[pk for pk, _ in rows]).update(
        status=Status.FAILED, error=error, error_category=category, finished_at=now()
    )
    for pk, _ in rows:
        wake(Operation(pk=pk).request_id)
    return [seq for _, seq in rows]


def fail_gaps() -> int:
    """Where a number has been missing for too long, what waits for it fails and says which."""
    in_next_place = Operation.objects.filter(run=OuterRef("run"), seq=OuterRef("run__done_seq") + 1)
    stuck = Operation.objects.filter(
        ~Exists(in_next_place), status=Status.QUEUED, created_at__lt=now() - GAP_DEADLINE
    )
    return sum(_fail_gap(run) for run in Run.objects.filter(pk__in=stuck.values("run")))


def _fail_gap(run: Run) -> int:
    with transaction.atomic():
        # False: the missing one came at the last moment, or another process was here first.
        same = Run.objects.filter(pk=run.pk, done_seq=run.done_seq)
        late = Operation.objects.filter(run=run, seq=run.done_seq + 1)
        if same.update(last_request_at=now()) != 1 or late.exists():
            return 0
        failed = _fail_queued(run, _describe_gap(run.done_seq + 1), "user")
        # Over the numbers that never came: `submit_operation` says so if they do.
        same.update(done_seq=max(failed, default=run.done_seq))
    return len(failed)


def describe_late(seq: int) -> str:
    return (
        f"seq_id {seq} came too late: the operations after it have ended already. Go on with"
        " the next number."
    )


def _describe_gap(missing: int) -> str:
    return (
        f"The request with seq_id {missing} did not arrive within"
        f" {GAP_DEADLINE.seconds} s, and this one has to run after it. Repeat what came after"
        f" seq_id {missing - 1}."
    )


def kick_waiting() -> None:
    """For kicks that were lost and workers that died: one for each queue with work waiting."""
    free_expired()
    ready = Operation.objects.filter(status=Status.QUEUED, seq=F("run__done_seq") + 1)
    runs = Run.objects.filter(pk__in=ready.values("run")).only("worker", "lease_until")
    for queue in {_find_queue(run) for run in runs}:
        send_task(GPU_TURN, queue=queue)


def kick(run: Run) -> None:
    count_work()
    transaction.on_commit(partial(_call, run))


def _call(run: Run) -> None:
    """By Celery, which waits for whoever is away, only where its worker does not listen."""
    name = _find_worker(run)
    if not (name and call_worker(name)):
        send_task(GPU_TURN, queue=_find_queue(run))


def _find_queue(run: Run) -> str:
    name = _find_worker(run)
    return GPU_QUEUE.format(name=name) if name else ANY_GPU_QUEUE


def _find_worker(run: Run) -> str:
    """The one that holds the run; none where its lease has ended."""
    is_held = run.lease_until is not None and run.lease_until > now()
    return run.worker.partition(START)[0] if is_held else ""


def _is_free_for(worker: str) -> Q:
    return Q(worker="") | Q(worker=worker) | Q(lease_until__lt=now())
