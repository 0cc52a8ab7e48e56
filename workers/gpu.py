"""Turns of the process that owns a device: several runs' operations, one pass at a time."""

import errno
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from celery.signals import worker_ready, worker_shutdown
from django.db import transaction

from training.engine.cycle import Cycle, Outcome, Pack
from training.errors import InvalidInput
from webapp.core.dispatch import GPU_QUEUE, GPU_TURN, ISOLATION_TEST, send_task
from webapp.core.errors import UserError
from webapp.fleet.isolation import fail_isolation_test
from webapp.runs import queue
from webapp.runs.history import record_optimizer_step
from webapp.runs.models import Operation, Run
from workers import journal
from workers.celery import app
from workers.device import Device, Heart, Job, read_setup, register, unregister
from workers.ear import Ear
from workers.execute import Done, catch_up, execute, note_pass, read_request
from workers.gauge import watch
from workers.isolation import run_isolation_test
from workers.news import News
from workers.ranks import open_lead

LOOP_SECONDS = 1.0  # then whatever else waits on this worker's queue has its turn
NO_SPACE = os.strerror(errno.ENOSPC)  # libraries wrap it in errors of their own
DISK_FULL = (
    "The disk of the state folder is full, and nothing could be saved: free some space, then go on"
    " from the last checkpoint."
)

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an operation has no result. `category`: user or server."""

    error: str
    category: str


GIVEN_UP = Failure(
    error=(
        f"The worker ended {queue.MAX_TRIES} times while it was at this operation, and it is not"
        " tried again: the worker's log may say why. Go on from the last checkpoint, with less in"
        " one request."
    ),
    category="server",
)


def run_turn(device: Device) -> bool:
    """One pass of several runs, or one other operation. True: there may be more."""
    device.tidy()
    gather(device)
    if not device.pending:
        return False
    operation = choose(device)
    is_pass = operation.kind == Operation.Kind.FORWARD_BACKWARD
    if is_pass or not device.can_hold(operation.run):
        run_pass(device, operation)
    else:
        run_alone(device, operation)
    return True


def gather(device: Device) -> None:
    """Take what waits in the logs: of runs that were served last at once, of others on a hint."""
    fresh, device.fresh = device.fresh, {}
    for run in fresh.values():
        begin_run(device, run)
    if device.news is None or device.news.has_come():
        for run in queue.find_work(device.name):
            begin_run(device, run)


def begin_run(device: Device, run: Run) -> None:
    """Lease it, where its next operation can be executed, and take what waits in its log."""
    if run.pk in device.pending:
        return
    if run.worker != device.name:
        device.forget(run.pk)  # another worker may have gone on with it since
    if not queue.lease_run(run, worker=device.name):
        return
    if run.pk not in device.held:
        queue.requeue_running(run, worker=device.name)
    if operations := queue.next_operations(run, worker=device.name):
        device.take(run, operations)


def choose(device: Device) -> Operation:
    """Of the run that had least. Before a pass comes a step of each run that has one: its next
    batch can be in the pass then, and steps are short."""
    order = device.shares.sort(device.pending)
    heads = [device.pending[run_id][0] for run_id in order]
    steps = (head for head in heads if head.kind == Operation.Kind.OPTIM_STEP)
    return next((step for step in steps if step.run_id not in device.stepped), heads[0])


def run_pass(device: Device, operation: Operation) -> None:
    """One pass of the operation's model, or of one that is at work where the operation's finds no
    place; each operation that it completes ends with it."""
    job = find_job(device, operation)
    if job is None:  # it was refused: the next turn goes on
        return
    device.stepped.clear()
    pack = job.cycle.take_pack()
    jobs = [device.jobs[run_id] for run_id in pack.runs]
    started = time.perf_counter()
    failure = attempt(watch(jobs[0].held, pack, partial(execute_pack, job.cycle, pack, jobs)))
    if failure is not None:
        part(device, jobs, failure)
        return
    note_seconds(device, jobs, pack, time.perf_counter() - started)
    for run_id, outcome in job.cycle.settle(pack).items():
        end_job(device, device.jobs[run_id], outcome)


def execute_pack(cycle: Cycle, pack: Pack, jobs: Sequence[Job]) -> None:
    for job in jobs:
        if not job.has_begun:
            job.has_begun = True
            queue.note_try(job.operation)
    cycle.execute(pack)


def find_job(device: Device, operation: Operation) -> Job | None:
    """The operation's, with those of others opened to go beside it."""
    if device.can_hold(operation.run):
        for run_id in device.shares.sort(device.pending):
            open_job(device, device.pending[run_id][0])
        return device.jobs.get(operation.run_id)
    # Its base model needs the place of one that is at work: nothing new begins until that is free.
    return device.jobs[device.shares.find_next(device.jobs)]


def open_job(device: Device, operation: Operation) -> None:
    """Into the cycle of its model; one that cannot be computed ends here."""
    is_new = operation.run_id not in device.jobs and device.can_hold(operation.run)
    if operation.kind != Operation.Kind.FORWARD_BACKWARD or not is_new:
        return
    given_up = queue.is_given_up(operation)
    failure = GIVEN_UP if given_up else attempt(partial(add_job, device, operation))
    if failure is not None:
        end(device, operation, failure)


def add_job(device: Device, operation: Operation) -> None:
    request = read_request(operation)
    held = device.hold(operation.run)
    catch_up(held, operation)
    run_id, cycle = operation.run_id, device.find_cycle(held.engine)
    cycle.add(run_id, request, is_alone=run_id in device.suspects or operation.tries > 0)
    device.jobs[run_id] = Job(operation=operation, held=held, request=request, cycle=cycle)


def note_seconds(device: Device, jobs: Sequence[Job], pack: Pack, seconds: float) -> None:
    """A pass's time, by the tokens that each run has in it."""
    device.seconds_a_token = seconds / max(1, pack.num_tokens)
    for job in jobs:
        job.seconds += device.seconds_a_token * pack.count_tokens(job.operation.run_id)


def part(device: Device, jobs: Sequence[Job], failure: Failure) -> None:
    """One job broke the pass, and all have half a gradient: each tries again by itself."""
    for job in jobs:
        device.forget(job.operation.run_id)
    if len(jobs) == 1:
        end(device, jobs[0].operation, failure)
    else:
        device.suspects.update(job.operation.run_id for job in jobs)


def end_job(device: Device, job: Job, outcome: Outcome) -> None:
    if isinstance(outcome, InvalidInput):
        end(device, job.operation, Failure(error=str(outcome), category="user"))
        return
    done = note_pass(job.held, job.operation, job.request, outcome, job.seconds)
    end(device, job.operation, done)


def run_alone(device: Device, operation: Operation) -> None:
    given_up = queue.is_given_up(operation)
    outcome = GIVEN_UP if given_up else attempt(partial(execute_alone, device, operation))
    if isinstance(outcome, Failure) and outcome.category == "server":
        device.forget(operation.run_id)
    if operation.kind == Operation.Kind.OPTIM_STEP:
        device.stepped.add(operation.run_id)
    end(device, operation, outcome)


def execute_alone(device: Device, operation: Operation) -> Done:
    """Its time counts in tokens of passes; that of loading a base model is nobody's."""
    queue.note_try(operation)
    held = device.hold(operation.run)
    started = time.perf_counter()
    try:
        return execute(held, operation)
    finally:
        if device.seconds_a_token:
            seconds = time.perf_counter() - started
            device.shares.charge(operation.run_id, seconds / device.seconds_a_token)


def end(device: Device, operation: Operation, outcome: Done | Failure) -> None:
    """Store how it ended. Where that fails, or is not ours to say, the run is let go."""
    run_id = operation.run_id
    device.leave(operation)
    if attempt(partial(store, device.name, operation, outcome)) is not True:
        device.let_go(run_id)
        return
    held = device.held.get(run_id)
    if held is not None and journal.is_autosave_due(held):
        attempt(partial(journal.autosave, held))


def store(worker: str, operation: Operation, outcome: Done | Failure) -> bool:
    """The result and its step's numbers, together. False: another worker has the run."""
    if isinstance(outcome, Failure):
        return queue.fail_operation(
            operation, worker=worker, error=outcome.error, category=outcome.category
        )
    finish = partial(
        queue.finish_operation,
        operation,
        worker=worker,
        result=outcome.result,
        content_type=outcome.content_type,
    )
    if outcome.metrics is None:
        return finish()
    with transaction.atomic():
        is_stored = finish()
        if is_stored:
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
    ear: Ear | None = None
    lock = threading.Lock()


@app.task(name=GPU_TURN)
def turn() -> None:
    take_turns()


def take_turns() -> None:
    with Holder.lock:
        loop(open_device())


@app.task(name=ISOLATION_TEST)
def test_isolation(test_id: str) -> None:
    with Holder.lock:
        device = open_device()
        turn_of_others = partial(run_turn, device)
        failure = attempt(partial(run_isolation_test, device, test_id, turn_of_others))
    if failure is not None:
        fail_isolation_test(test_id=test_id, error=failure.error)


def loop(device: Device) -> None:
    """Whoever called for it had a reason that may be counted nowhere."""
    started = time.monotonic()
    if device.news is not None:
        device.news.expire()
    while run_turn(device):
        if time.monotonic() - started > LOOP_SECONDS:
            send_task(GPU_TURN, queue=GPU_QUEUE.format(name=device.setup.name))
            return


def open_device() -> Device:
    if Holder.device is None:
        setup = read_setup()
        lead = open_lead(setup.plan) if setup.plan else None
        Holder.device = Device(setup=setup, lead=lead, news=News())
        register(Holder.device)
        Holder.heart = Heart(Holder.device)
        Holder.heart.start()
        Holder.ear = Ear(setup.name, take_turns)
        Holder.ear.start()
    return Holder.device


@worker_ready.connect
def begin(**_: object) -> None:
    with Holder.lock:
        device = open_device()
    # What the last worker of this name left is waiting already.
    send_task(GPU_TURN, queue=GPU_QUEUE.format(name=device.setup.name))


@worker_shutdown.connect
def finish(**_: object) -> None:
    if Holder.ear is not None:
        Holder.ear.stop()
    with Holder.lock:
        if Holder.device is not None and Holder.heart is not None:
            Holder.heart.stop()
            unregister(Holder.device)
            Holder.device = Holder.heart = Holder.ear = None
