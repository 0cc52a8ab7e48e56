"""Drives a run's recipe: takes it, feeds it rows, does what is due between its steps, ends it."""

import logging
import os
import socket
import uuid
from collections.abc import Callable
from pathlib import Path

from training.errors import InvalidInput
from training.recipes.config import RecipeConfig
from webapp.core.errors import UserError
from webapp.runs import driving
from webapp.runs.driving import Cancelled, DriverLost, Paused
from webapp.runs.methods import METHODS
from webapp.runs.models import LogLine, Run
from webapp.runs.services import NOT_OF_THE_RECIPE, add_log
from webapp.settings import read_int
from workers.errands import SAVED_NAME
from workers.keep_going import KeepGoing, ProcessEnds, shutting_down
from workers.methods import DRIVES
from workers.prompts import pin_prompts
from workers.remote import OperationFailed, RedisWaiter, RemoteModel, Waiter

MAX_DRIVEN = read_int("HONE_RECIPES", 24, least=1)  # at once in a process; they mostly wait
STOP_SECONDS = 180.0  # to wait for the last checkpoint of a run that is stopped

Status = Run.Status
logger = logging.getLogger(__name__)

HOST = socket.gethostname()[:40]
START = uuid.uuid4().hex[:8]  # a restarted container's process has the number of the last one

driven: dict[str, Run] = {}  # by this process, now


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


def fail(run_id: str, error: str) -> None:
    """What nobody foresaw."""
    run = driven.pop(run_id, None) or Run.objects.get(pk=run_id)
    driving.invite_next()
    end_failed(run, error, "server")


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


def run_recipe(run: Run, waiter: Waiter, keep: KeepGoing) -> None:
    model = RemoteModel.open(run, waiter=waiter, keep_going=keep)
    say = tell_once(run, model)
    if model.is_replaying:
        add_log(run, "Taken up again from its log.", step=read_step(run))
    kind = DRIVES[run.recipe]
    config = pin_prompts(run, read_config(run), kind.choose_prompts)
    recipe = kind(run=run, model=model, config=config, waiter=waiter, keep=keep)
    said = recipe.prepare()
    driving.set_total_steps(run, recipe.num_steps)
    say(said)
    model.create().result()
    recipe.drive()
    if driving.finish_run(run, Status.DONE):
        said = f"Done after {recipe.num_done} steps.{recipe.sum_up()}"
        add_log(run, said, step=recipe.num_done)


def tell_once(run: Run, model: RemoteModel) -> Callable[[str], None]:
    """Log lines of what a replay does again are there already."""

    def say(text: str) -> None:
        if not model.is_replaying:
            add_log(run, text)

    return say


def read_config(run: Run) -> RecipeConfig:
    own = {key: value for key, value in run.config.items() if key not in NOT_OF_THE_RECIPE}
    return METHODS[run.recipe].config.from_dict(own)


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
