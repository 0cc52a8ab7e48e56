"""Turns of the process that owns a device: several runs' operations, one pass at a time."""

import errno
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from celery.signals import worker_ready, worker_shutdown
from django.db import transaction

from training.errors import InvalidInput
from training.types import ForwardBackward, ForwardBackwardOutput
from webapp.core.dispatch import GPU_QUEUE, GPU_TURN, send_task
from webapp.core.errors import UserError
from webapp.runs import queue
from webapp.runs.history import record_optimizer_step
from webapp.runs.models import Operation
from workers import journal
from workers.celery import app
from workers.device import Device, Heart, read_setup, register, unregister
from workers.execute import Done, Held, catch_up, execute, note_pass, read_request

LOOP_SECONDS = 1.0  # then whatever else waits on this worker's queue has its turn
NO_SPACE = os.strerror(errno.ENOSPC)  # libraries wrap it in errors of their own
DISK_FULL = (
    "The disk of the state folder is full, and nothing could be saved: free some space, then go on"
    " from the last checkpoint."
)
PASS_TOKENS = 8192  # of several runs together; one operation goes through whatever its size

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an operation has no result. `category`: user or server."""

    error: str
    category: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A forward_backward that is ready for the engine."""

    operation: Operation
    held: Held
    request: ForwardBackward


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What the engine made of several jobs, by run."""

    outputs: dict[str, ForwardBackwardOutput | InvalidInput]
    seconds_a_token: float


def run_turn(device: Device) -> bool:
    """One pass of several runs, or one other operation. True: there may be more."""
    device.tidy()
    gather(device)
    if not device.pending:
        return False
    chosen = choose(device)
    if chosen[0].kind == Operation.Kind.FORWARD_BACKWARD:
        run_pass(device, chosen)
    else:
        run_alone(device, chosen[0])
    return True


def gather(device: Device) -> None:
    """Lease every run whose next operation can be executed, and take what waits in its log."""
    for run in queue.find_work(device.name):
        if run.pk in device.pending:
            continue
        if run.worker != device.name:
            device.forget(run.pk)  # another worker may have gone on with it since
        if not queue.lease_run(run, worker=device.name):
            continue
        if run.pk not in device.held:
            queue.requeue_running(run, worker=device.name)
        if operations := queue.next_operations(run, worker=device.name):
            # Who comes back after a while has no credit from it, only an equal start.
            floor = min((device.spent.get(each, 0) for each in device.pending), default=0)
            device.spent[run.pk] = max(device.spent.get(run.pk, 0), floor)
            device.pending[run.pk] = deque(operations)


def choose(device: Device) -> list[Operation]:
    """The next operation of the run that had least, and forward_backwards that fit beside it."""
    order = sorted(device.pending, key=lambda run_id: device.spent.get(run_id, 0))
    first, *others = [device.pending[run_id][0] for run_id in order]
    if first.kind != Operation.Kind.FORWARD_BACKWARD:
        return [first]
    chosen, num_tokens = [first], first.num_tokens
    for other in others:
        fits = num_tokens + other.num_tokens <= PASS_TOKENS
        same = (other.kind, other.run.base_model_id) == (first.kind, first.run.base_model_id)
        if fits and same:
            chosen.append(other)
            num_tokens += other.num_tokens
    return chosen


def run_pass(device: Device, operations: Sequence[Operation]) -> None:
    """One call of the engine for operations of different runs; each ends with its own result."""
    jobs = []
    for operation in operations:
        job = attempt(partial(open_job, device, operation))
        if isinstance(job, Failure):
            end(device, operation, job)
        else:
            jobs.append(job)
    passed = attempt(partial(compute, jobs)) if jobs else None
    if isinstance(passed, Failure):
        part(device, jobs, passed)
    elif passed is not None:
        for job in jobs:
            end_job(device, job, passed)


def open_job(device: Device, operation: Operation) -> Job:
    request = read_request(operation)
    held = device.hold(operation.run)
    catch_up(held, operation)
    return Job(operation=operation, held=held, request=request)


def compute(jobs: Sequence[Job]) -> Passed:
    engine = jobs[0].held.engine
    started = time.perf_counter()
    outputs = engine.forward_backward({job.held.run.pk: job.request for job in jobs})
    num_tokens = sum(job.request.num_tokens for job in jobs)
    seconds = time.perf_counter() - started
    return Passed(outputs=outputs, seconds_a_token=seconds / max(1, num_tokens))


def part(device: Device, jobs: Sequence[Job], failure: Failure) -> None:
    """One job broke the pass, and all have half a gradient: each tries again by itself."""
    for job in jobs:
        device.forget(job.held.run.pk)
    if len(jobs) == 1:
        end(device, jobs[0].operation, failure)
        return
    for job in jobs:
        run_pass(device, [job.operation])


def end_job(device: Device, job: Job, passed: Passed) -> None:
    run_id, num_tokens = job.held.run.pk, job.request.num_tokens
    device.spent[run_id] = device.spent.get(run_id, 0) + job.request.weight
    output = passed.outputs[run_id]
    if isinstance(output, InvalidInput):
        end(device, job.operation, Failure(error=str(output), category="user"))
        return
    seconds = num_tokens * passed.seconds_a_token
    end(device, job.operation, note_pass(job.held, job.operation, job.request, output, seconds))


def run_alone(device: Device, operation: Operation) -> None:
    def act() -> Done:
        return execute(device.hold(operation.run), operation)

    outcome = attempt(act)
    if isinstance(outcome, Failure) and outcome.category == "server":
        device.forget(operation.run_id)
    end(device, operation, outcome)


def end(device: Device, operation: Operation, outcome: Done | Failure) -> None:
    """Store how it ended. Where that fails, or is not ours to say, the run is let go."""
    run_id = operation.run_id
    queued = device.pending.get(run_id)
    if queued is not None:
        queued.popleft()
        if not queued:
            del device.pending[run_id]
    if attempt(partial(store, device.name, operation, outcome)) is not True:
        device.let_go(run_id)
        return
    held = device.held.get(run_id)
    if held is not None and journal.is_autosave_due(held):
        attempt(partial(journal.autosave, held))


@transaction.atomic
def store(worker: str, operation: Operation, outcome: Done | Failure) -> bool:
    """The result and its step's numbers, together. False: another worker has the run."""
    if isinstance(outcome, Failure):
        return queue.fail_operation(
            operation, worker=worker, error=outcome.error, category=outcome.category
        )
    is_stored = queue.finish_operation(
        operation, worker=worker, result=outcome.result, content_type=outcome.content_type
    )
    if is_stored and outcome.metrics is not None:
        record_optimizer_step(operation.run, outcome.metrics, num_tokens=outcome.num_tokens)
    return is_stored


def attempt(act: Callable[[], T]) -> T | Failure:
    """The worker outlives every operation."""
    try:
        return act()
    except (InvalidInput, UserError) as error:
        return Failure(error=str(error), category="user")
    except Exception as error:
        number = uuid.uuid4().hex[:8]
        logger.exception("internal error %s", number)
        if NO_SPACE in str(error):
            return Failure(error=DISK_FULL, category="server")
        return Failure(
            error=f"internal error {number}: the worker's log says more", category="server"
        )


class Holder:
    """The one device of this process, while it is a worker."""

    device: Device | None = None
    heart: Heart | None = None
    lock = threading.Lock()


@app.task(name=GPU_TURN)
def turn() -> None:
    with Holder.lock:
        loop(open_device())


def loop(device: Device) -> None:
    started = time.monotonic()
    while run_turn(device):
        if time.monotonic() - started > LOOP_SECONDS:
            send_task(GPU_TURN, queue=GPU_QUEUE.format(name=device.setup.name))
            return


def open_device() -> Device:
    if Holder.device is None:
        Holder.device = Device(setup=read_setup())
        register(Holder.device)
        Holder.heart = Heart(Holder.device)
        Holder.heart.start()
    return Holder.device


@worker_ready.connect
def begin(**_: object) -> None:
    with Holder.lock:
        device = open_device()
    # What the last worker of this name left is waiting already.
    send_task(GPU_TURN, queue=GPU_QUEUE.format(name=device.setup.name))


@worker_shutdown.connect
def finish(**_: object) -> None:
    with Holder.lock:
        if Holder.device is not None and Holder.heart is not None:
            Holder.heart.stop()
            unregister(Holder.device)
            Holder.device = Holder.heart = None
