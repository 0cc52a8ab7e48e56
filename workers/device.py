"""What a process that owns a device holds: base models, runs' weights, begun operations."""

import logging
import math
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from django.db import DatabaseError, close_old_connections
from django.utils.timezone import now

from training.engine.core import TOKEN_BUDGET, Engine
from training.engine.cycle import Cycle
from training.engine.lead import Lead, LeadEngine
from training.engine.ranks import Plan
from training.fairness import Shares
from training.types import ForwardBackward
from webapp.accounts.models import Project
from webapp.fleet.models import Worker
from webapp.fleet.services import beat_worker, register_worker, remove_worker
from webapp.runs import queue
from webapp.runs.models import Operation, Run
from webapp.settings import read_int
from workers import journal
from workers.execute import Held
from workers.machine import describe_machine, measure_flops
from workers.memory import (
    Budget,
    can_page,
    count_bytes,
    count_page,
    describe_memory,
    find_excess,
    is_crowded,
    move_back,
    move_to_host,
    plan_engine,
    read_budget,
)
from workers.news import News
from workers.ranks import read_plan

BEAT_SECONDS = 10.0
TIDY_SECONDS = 10.0
TOKENS = {"cuda": 16_384, "cpu": TOKEN_BUDGET}  # of a pass, at most, where nobody says how many

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How much a device may hold, and in what it computes."""

    name: str
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    token_budget: int = TOKEN_BUDGET  # where memory is known, the most that it may choose
    memory: Budget = field(default_factory=Budget)
    max_models: int = 2
    max_runs: int = 256
    plan: Plan | None = None  # of the processes that hold its models together


def read_setup() -> Setup:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plan = read_plan(device)
    return Setup(
        name=os.environ.get("HONE_WORKER") or socket.gethostname(),
        device=device,
        dtype=torch.bfloat16 if device == "cuda" else torch.float32,
        token_budget=read_int("HONE_TOKEN_BUDGET", TOKENS[device], least=1),
        memory=read_budget(device, plan),
        max_models=read_int("HONE_RESIDENT_MODELS", 8, least=1),
        max_runs=read_int("HONE_RESIDENT_RUNS", 256, least=1),
        plan=plan,
    )


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """A forward_backward on its way through a cycle."""

    operation: Operation
    held: Held
    request: ForwardBackward
    cycle: Cycle
    seconds: float = 0.0  # of the device, this run's part of its passes
    has_begun: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class Device:
    """Everything in it can be lost: rows and autosaves make it again."""

    setup: Setup
    lead: Lead | None = None  # where its models are held by several processes
    # By base model or, of a full-parameter run, by run; the longest unused first.
    engines: dict[str, Engine] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)  # the longest unused first
    pending: dict[str, deque[Operation]] = field(default_factory=dict)  # marked running, by run
    fresh: dict[str, Run] = field(default_factory=dict)  # nothing pending, but perhaps queued
    jobs: dict[str, Job] = field(default_factory=dict)  # the first of what is pending, by run
    cycles: dict[Engine, Cycle] = field(default_factory=dict)
    shares: Shares = field(default_factory=Shares)  # of whose operations are pending
    share_of: dict[str, float] = field(default_factory=dict)  # by project, as read lately
    stepped: set[str] = field(default_factory=set)  # runs with a step since the last pass
    suspects: set[str] = field(default_factory=set)  # in a pass that broke: each goes alone now
    seconds_a_token: float = 0.0  # of the last pass
    news: News | None = None  # says whether to look for others' work; None: look always
    tidied_at: float = field(default_factory=time.monotonic)
    loading: str = ""  # the base model that is being read now
    restoring: str = ""  # the run whose weights are being made again
    start: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    @property
    def name(self) -> str:
        """As leases say it. Two processes of one name, such as an old one that is still ending,
        do not take each other's leases for their own.
        """
        return queue.name_holder(self.setup.name, self.start)

    def hold(self, run: Run) -> Held:
        """The run's weights, made again from its journal where they are not here."""
        held = self.held.pop(run.pk, None) or self.restore(run)
        move_back(held)
        self.held[run.pk] = held
        self.page_out()
        return held

    def restore(self, run: Run) -> Held:
        """It may take as long as what it repeats did; whoever waits for it can read why."""
        engine = self.open(run)
        if run.done_seq < 0:
            return journal.restore(run, engine)
        self.restoring = run.pk
        try_beat(self)
        try:
            return journal.restore(run, engine)
        finally:
            self.restoring = ""
            try_beat(self)

    def open(self, run: Run) -> Engine:
        """Where a run's weights are to be made. All weights are made of a base that is new."""
        key = name_engine(run)
        if run.is_full and key in self.engines:  # what is left of an attempt that broke
            self.discard(self.engines[key])
        engine = self.engines.pop(key, None)
        if engine is None:
            while len(self.engines) >= self.setup.max_models:
                self.close(self.find_idle() or next(iter(self.engines)))
            while is_crowded(self.setup.memory, self.engines, run) and (idle := self.find_idle()):
                self.close(idle)
            engine = self.load(run)
        self.engines[key] = engine
        return engine

    def list_models(self) -> list[str]:
        """The base models that are in memory, whether as they are or as a run has trained them."""
        held = dict(self.held)
        keys = (held[key].run.base_model_id if key in held else key for key in list(self.engines))
        return list(dict.fromkeys(keys))

    def find_idle(self) -> str | None:
        """The engine, longest unused, that no forward_backward is going through."""
        busy = {id(job.held.engine) for job in self.jobs.values()}
        return next((key for key, engine in self.engines.items() if id(engine) not in busy), None)

    def can_hold(self, run: Run) -> bool:
        """False: room is made for its base model once others have ended what they began."""
        has_room = len(self.engines) < self.setup.max_models or self.find_idle() is not None
        return run.pk in self.held or name_engine(run) in self.engines or has_room

    def find_cycle(self, engine: Engine) -> Cycle:
        return self.cycles.setdefault(engine, Cycle(engine, self.shares))

    def take(self, run: Run, operations: Iterable[Operation]) -> None:
        """They are marked running: the run takes part in the turns until they have ended."""
        self.pending[run.pk] = deque(operations)
        share = self.share_of.setdefault(run.project_id, run.project.share)
        self.shares.join(run.pk, group=run.project_id, share=share)

    def leave(self, operation: Operation) -> None:
        """It has ended. What comes next in its run's log may be there already."""
        run_id = operation.run_id
        self.jobs.pop(run_id, None)
        self.suspects.discard(run_id)
        queued = self.pending.get(run_id)
        if queued is None:
            return
        queued.popleft()
        if not queued:
            del self.pending[run_id]
            self.shares.leave(run_id)
            self.fresh[run_id] = operation.run

    def load(self, run: Run) -> Engine:
        """It may take a minute, and whoever waits for it can read why."""
        base_model = run.base_model
        self.loading = base_model.name
        try_beat(self)
        path, dtype, most = Path(base_model.path), self.setup.dtype, self.setup.token_budget
        try:
            device = self.setup.device
            fit = plan_engine(path, self.setup.memory, device, most, is_full=run.is_full)
            room = fit.room if fit else None
            budget, recompute = (fit.token_budget, fit.recompute) if fit else (most, False)
            if self.lead is not None:
                return self.lead.load(
                    path, dtype=dtype, token_budget=budget, recompute=recompute, room=room
                )
            engine = Engine.load(
                path, device=device, dtype=dtype, token_budget=budget, recompute=recompute
            )
            engine.room = room
            return engine
        finally:
            self.loading = ""
            try_beat(self)

    def close(self, key: str) -> None:
        """Drop a base model and every run's weights on it."""
        engine = self.engines[key]
        for run_id in [run_id for run_id, held in self.held.items() if held.engine is engine]:
            self.evict(run_id)
        self.discard(engine)

    def discard(self, engine: Engine) -> None:
        """Nobody has weights on it any more. Once more is nothing."""
        self.cycles.pop(engine, None)
        for key in [key for key, each in self.engines.items() if each is engine]:
            del self.engines[key]
            if isinstance(engine, LeadEngine):
                engine.lead.close(engine)

    def page_out(self) -> None:
        """Idle runs leave, the longest unused first, until the others are within their bytes."""
        budget, newest = self.setup.memory, next(reversed(self.held), None)
        idle = {key for key in self.held if key not in self.pending and key != newest}
        for run_id in find_excess(self.held, idle, count_bytes, budget.runs or math.inf):
            if budget.host and can_page(self.held[run_id]):
                move_to_host(self.held[run_id])
            else:
                self.send_away(run_id)
        for run_id in find_excess(self.held, idle, count_page, budget.host):
            self.send_away(run_id)

    def send_away(self, run_id: str) -> None:
        """To disk. Whichever worker has room may go on with it."""
        run = self.held[run_id].run
        self.evict(run_id)
        queue.release_run(run, worker=self.name)

    def evict(self, run_id: str) -> None:
        held = self.held[run_id]
        if held.is_settled and held.seq > held.run.autosave_seq:
            move_back(held)
            journal.autosave(held)
        self.forget(run_id)

    def forget(self, run_id: str) -> None:
        """Drop a run's weights as they are, such as after half a pass."""
        if (job := self.jobs.pop(run_id, None)) is not None:
            job.cycle.drop(run_id)
        held = self.held.pop(run_id, None)
        if held is not None:
            held.engine.drop(run_id)
            if held.engine.is_spent:
                self.discard(held.engine)

    def let_go(self, run_id: str) -> None:
        """The run is another worker's now."""
        self.forget(run_id)
        self.pending.pop(run_id, None)
        self.fresh.pop(run_id, None)
        self.shares.leave(run_id)

    def tidy(self) -> None:
        """Weights of runs that are over, or that nobody has used for the longest time."""
        if time.monotonic() - self.tidied_at < TIDY_SECONDS:
            return
        self.tidied_at = time.monotonic()
        idle = [run_id for run_id in self.held if run_id not in self.pending]
        for run in Run.objects.filter(pk__in=idle):
            if run.is_over:
                self.forget(run.pk)
                journal.discard(run)
                queue.release_run(run, worker=self.name)
        left = [run_id for run_id in idle if run_id in self.held]
        for run_id in left[: max(0, len(self.held) - self.setup.max_runs)]:
            self.send_away(run_id)
        self.page_out()
        projects = Project.objects.filter(runs__in=list(self.held)).distinct()
        self.share_of = dict(projects.values_list("pk", "share"))


def name_engine(run: Run) -> str:
    """A full-parameter run has a model for itself, others share their base."""
    return run.pk if run.is_full else run.base_model_id


class Heart:
    """Says that the worker lives, and keeps its leases, while a pass takes its time."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.is_stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.is_stopped.set()
        self.thread.join()

    def _run(self) -> None:
        while not self.is_stopped.wait(BEAT_SECONDS):
            try_beat(self.device)
            close_old_connections()


def try_beat(device: Device) -> None:
    try:
        beat(device)
    except DatabaseError as error:
        logger.warning("no heartbeat: %s", error)


def beat(device: Device) -> None:
    """Only what is in memory is renewed: a run that was let go is free for others in a minute."""
    runs = list(device.held | device.pending)
    held = Run.objects.filter(pk__in=runs, worker=device.name)
    held.update(lease_until=now() + queue.LEASE)
    shared = [key for key, each in list(device.engines.items()) if each.full is None]
    models = {"base_models": device.list_models(), "shared_models": shared}
    holds: dict[str, object] = {**models, "runs": runs}
    doing = {"loading": device.loading, "restoring": device.restoring}
    setup = device.setup
    memory = describe_memory(
        setup.memory, setup.device, setup.token_budget, device.engines, device.held
    )
    beat_worker(name=setup.name, holds=holds | doing | {"memory": memory})


def register(device: Device) -> None:
    """A worker of this name that died held runs: they are free at once."""
    setup = device.setup
    queue.release_worker(worker=setup.name)
    text, memory_bytes = describe_machine(setup.device, setup.plan)
    register_worker(
        name=setup.name,
        kind=Worker.Kind.GPU,
        device=text,
        memory_bytes=memory_bytes,
        flops=measure_flops(setup.device, setup.dtype, setup.plan),
        pid=os.getpid(),
    )
    beat(device)  # what it offers is known before anything comes


def unregister(device: Device) -> None:
    """An orderly end: what can be saved is, so that the next worker has little to repeat."""
    for run_id in list(device.held):
        device.evict(run_id)
    if device.lead is not None:
        device.lead.end()
    queue.release_worker(worker=device.name)
    remove_worker(name=device.setup.name, pid=os.getpid())
