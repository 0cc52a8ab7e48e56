"""Drives a run's recipe: takes it, feeds it rows, does what is due between its steps, ends it."""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from celery.signals import worker_shutting_down
from django.conf import settings

from training.data.tokenizer import ChatTokenizer
from training.data.validate import read_normalised
from training.errors import InvalidInput
from training.recipes import sft
from training.recipes.sft import Order, Prepared, SftConfig, Step
from webapp.core.errors import UserError
from webapp.runs import driving
from webapp.runs.driving import Cancelled, DriverLost, Interrupted, Paused
from webapp.runs.models import LogLine, Run
from webapp.runs.services import NOT_OF_THE_RECIPE, add_log
from webapp.settings import read_int
from workers.errands import SAVED_NAME, Errands, Wanted
from workers.prompts import pin_prompts
from workers.remote import OperationFailed, RedisWaiter, RemoteModel, Waiter

MAX_DRIVEN = read_int("HONE_RECIPES", 24, least=1)  # at once in a process; they mostly wait
RENEW_SECONDS = 5.0
STOP_SECONDS = 180.0  # to wait for the last checkpoint of a run that is stopped

Status = Run.Status
T = TypeVar("T")
logger = logging.getLogger(__name__)

HOST = socket.gethostname()[:40]
START = uuid.uuid4().hex[:8]  # a restarted container's process has the number of the last one

shutting_down = threading.Event()
driven: dict[str, Run] = {}  # by this process, now


class ProcessEnds(Interrupted):
    """The process is told to end: another one takes the run up where it is."""


@worker_shutting_down.connect
def leave_runs(**_: object) -> None:
    shutting_down.set()


def train(run_id: str) -> None:
    """Drive a run to its end, to a pause, or until this process ends. Twice at once is one.

    Where every place is taken the run stays queued: other tasks need their threads.
    """
    if len(driven) >= MAX_DRIVEN or shutting_down.is_set():
        return
    if not driving.take_driver(run_id, driver=name_driver()):
        return
    related = ("base_model", "dataset_version", "parent", "project", "session")
    run = driven[run_id] = Run.objects.select_related(*related).get(pk=run_id)
    with RedisWaiter() as waiter:
        drive(run, waiter)
    driven.pop(run_id, None)
    driving.invite_next()


def name_driver() -> str:
    """Another one for each task; it says whose process it is."""
    return f"{HOST}.{os.getpid()}.{START}.{uuid.uuid4().hex[:8]}"


def free_abandoned() -> None:
    """Runs whose driver was a process of this machine that is gone need not wait out its lease."""
    for driver in driving.list_drivers(prefix=f"{HOST}."):
        pid, start = driver.removeprefix(f"{HOST}.").split(".")[:2]
        is_ours = start == START
        if not is_ours and (int(pid) == os.getpid() or not Path(f"/proc/{pid}").exists()):
            driving.free_driven_by(driver)


def fail(run_id: str, error: Exception) -> None:
    """What nobody foresaw: the sentence carries a number that the log of this process has too."""
    number = uuid.uuid4().hex[:8]
    logger.error("%s: internal error %s: %r", run_id, number, error)
    run = driven.pop(run_id, None) or Run.objects.get(pk=run_id)
    driving.invite_next()
    end_failed(run, f"internal error {number}: the server's log says more", "server")


def drive(run: Run, waiter: Waiter) -> None:
    keep = KeepGoing(run=run)
    try:
        run_recipe(run, waiter, keep)
    except Paused:
        driving.finish_run(run, Status.PAUSED)
        add_log(run, "Paused. What was asked of the device is still done.", step=read_step(run))
    except Cancelled:
        stop(run, waiter)
    except ProcessEnds:
        driving.release_driver(run)
    except DriverLost as error:
        logger.warning("%s", error)
    except (InvalidInput, UserError) as error:
        end_failed(run, str(error), "user")
    except OperationFailed as error:
        end_failed(run, str(error), "server")


@dataclass(slots=True, kw_only=True, eq=False)
class KeepGoing:
    """Called while the recipe waits: stays the driver, and hears Stop."""

    run: Run
    hears_wishes: bool = True
    renewed_at: float = field(default=0.0)

    def __call__(self) -> None:
        if shutting_down.is_set():
            raise ProcessEnds
        if time.monotonic() - self.renewed_at < RENEW_SECONDS:
            return
        driving.renew_driver(self.run)
        self.renewed_at = time.monotonic()
        if self.hears_wishes:
            driving.check_stop(self.run)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """A long read renews the lease too."""
        for item in items:
            self()
            yield item


def run_recipe(run: Run, waiter: Waiter, keep: KeepGoing) -> None:
    model = RemoteModel.open(run, waiter=waiter, keep_going=keep)
    say = tell_once(run, model)
    if model.is_replaying:
        add_log(run, "Taken up again from its log.", step=read_step(run))
    config = pin_prompts(run, read_config(run.config))
    prepared = prepare(run, config, keep)
    driving.set_total_steps(run, prepared.num_steps)
    say(describe_rows(prepared))
    model.create().result()
    errands = Errands(run=run, model=model, config=config, held_out=prepared.held_out)
    recipe = Sft(run=run, model=model, config=config, prepared=prepared, errands=errands)
    recipe.drive()
    last = f" Its last loss was {recipe.last_loss:.4g}." if recipe.last_loss is not None else ""
    if driving.finish_run(run, Status.DONE):
        add_log(run, f"Done after {prepared.num_steps} steps.{last}", step=prepared.num_steps)


def tell_once(run: Run, model: RemoteModel) -> Callable[[str], None]:
    """Log lines of what a replay does again are there already."""

    def say(text: str) -> None:
        if not model.is_replaying:
            add_log(run, text)

    return say


def read_config(config: Mapping[str, Any]) -> SftConfig:
    return SftConfig.from_dict({key: config[key] for key in config if key not in NOT_OF_THE_RECIPE})


def prepare(run: Run, config: SftConfig, keep: KeepGoing) -> Prepared:
    if run.dataset_version is None:
        raise InvalidInput("the run has no dataset version to learn from")
    rows = read_normalised(Path(settings.HONE_HOME) / run.dataset_version.rows_path)
    tokenizer = ChatTokenizer.load(run.base_model.path)
    return sft.prepare(keep.over(rows), tokenizer, config)


def describe_rows(prepared: Prepared) -> str:
    text = f"{len(prepared.train)} rows to learn from in {prepared.num_steps} steps"
    if prepared.held_out:
        text += f", {len(prepared.held_out)} held out"
    if prepared.truncated:
        text += f"; {len(prepared.truncated)} longer ones were cut"
    if prepared.dropped:
        text += f"; {len(prepared.dropped)} longer ones were left out"
    return text + "."


@dataclass(slots=True, kw_only=True, eq=False)
class Sft:
    """The recipe's steps, and what is due between them.

    Everything that enters the log here is bound to a step, so that a replay finds it at its place.
    """

    run: Run
    model: RemoteModel
    config: SftConfig
    prepared: Prepared
    errands: Errands
    settled_before: int = 0
    last_loss: float | None = None

    def drive(self) -> None:
        self.errands.begin(sampling=self._is_due(0).samples)
        steps = sft.train(self.model, self.prepared, self.config, steer=self.steer)
        for step in steps:
            self.take_step(step)
        self.errands.finish()

    def take_step(self, step: Step) -> None:
        self.last_loss = step.metrics.get("loss")
        driving.record_step(self.run, step.number, step.metrics)
        self.errands.look()
        if step.is_settled:
            self.errands.run_due(step.number, self._is_due(step.number))

    def steer(self, number: int) -> Order:
        """Before step `number`: wishes are fulfilled behind the step before, once that is done."""
        behind = number - 1
        is_replay = self.model.is_replaying or behind == 0
        orders = driving.take_orders(self.run, behind, is_replay=is_replay)
        done = self._is_due(behind)
        wanted = Wanted(
            checkpoint=orders.save and not done.checkpoint,
            evaluation=orders.evaluate and not done.evaluation,
            samples=orders.evaluate and not done.samples and bool(self.config.sampling.prompts),
        )
        if behind and wanted.is_anything:
            if self.settled_before != number:
                self.settled_before = number
                return Order(learning_rate=orders.learning_rate, settle=True)
            self.errands.run_due(behind, wanted)
        return Order(learning_rate=orders.learning_rate)

    def _is_due(self, number: int) -> Wanted:
        num_steps = self.prepared.num_steps
        return Wanted(
            checkpoint=number > 0 and self.config.is_checkpoint_due(number, num_steps=num_steps),
            evaluation=number > 0 and self.config.is_evaluation_due(number, num_steps=num_steps),
            samples=self.config.is_sampling_due(number, num_steps=num_steps),
        )


def stop(run: Run, waiter: Waiter) -> None:
    """What was trained so far is saved before the run ends."""
    keep = KeepGoing(run=run, hears_wishes=False)
    model = RemoteModel.open(run, waiter=waiter, keep_going=keep)
    model.skip_to_end()
    said = "Stopped before its first step."
    try:
        if model.num_steps:
            said = save_last(run, model)
    except (TimeoutError, InvalidInput, OperationFailed) as error:
        said = f"Stopped. Its last weights could not be saved: {error}."
        add_log(run, said, LogLine.Level.WARNING, step=read_step(run))
    if driving.finish_run(run, Status.CANCELLED):
        add_log(run, said, step=read_step(run))


def save_last(run: Run, model: RemoteModel) -> str:
    name = SAVED_NAME.format(step=model.num_steps)
    kept = run.checkpoints.filter(kind="training", name=name, deleted_at=None).first()
    if kept is None:
        kept = model.save_checkpoint(name, kind="training").result(timeout=STOP_SECONDS)
    return f"Stopped after {model.num_steps} steps; the checkpoint {kept.name} has the weights."


def end_failed(run: Run, error: str, category: str) -> None:
    if driving.finish_run(run, Status.FAILED, error=error, category=category):
        add_log(run, f"Failed: {error}", LogLine.Level.ERROR, step=read_step(run))


def read_step(run: Run) -> int:
    step: int = Run.objects.values_list("step", flat=True).get(pk=run.pk)
    return step
