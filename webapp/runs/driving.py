"""A run and the one task that drives its recipe: the lease, the steps, what people want between."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import Q
from django.utils.timezone import now

from webapp.accounts.models import User
from webapp.core.dispatch import TRAIN_RUN, send_task
from webapp.core.events import publish, run_group
from webapp.core.numbers import keep_finite
from webapp.runs.annotations import annotate
from webapp.runs.chains import HAS_TURN, begin_after, call_followers
from webapp.runs.endings import tell_end
from webapp.runs.history import record_metrics
from webapp.runs.models import Run, RunQuerySet
from webapp.runs.queue import fail_waiting
from webapp.runs.records import Annotation
from webapp.runs.services import announce

DRIVER_LEASE = timedelta(seconds=60)
ANNOUNCED = timedelta(seconds=30)  # a message may wait this long before it counts as lost

Status = Run.Status
Wish = Run.Wish


class Interrupted(Exception):  # noqa: N818 - not an error: the recipe is to end here
    """The recipe is to end between two steps, for a reason that is not its own."""


class Cancelled(Interrupted):
    """Somebody pressed Stop, or the run has ended already."""


class Paused(Interrupted):
    """Somebody pressed Pause: the log stays, and the recipe comes back to it."""


class DriverLost(Interrupted):
    """Another task drives this run now; whatever this one still does is nobody's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What people want at this step. The same again when the step is replayed."""

    learning_rate: float | None = None
    kl_coefficient: float | None = None
    save: bool = False
    evaluate: bool = False


def take_driver(run_id: str, *, driver: str) -> bool:
    """Begin or take over a run's recipe. False: another task drives it, or it is not to run."""
    if not begin_after(run_id):
        return False
    free = Q(driver="") | Q(driver=driver) | Q(driver_until__lt=now())
    waiting = Q(status__in=(Status.QUEUED, Status.RUNNING))
    taken = Run.objects.filter(free, waiting, ~Q(recipe=""), pk=run_id).update(
        status=Status.RUNNING, driver=driver, driver_until=now() + DRIVER_LEASE
    )
    Run.objects.filter(pk=run_id, driver=driver, started_at=None).update(started_at=now())
    return taken == 1


def renew_driver(run: Run) -> None:
    """Stay the driver. Raises what the recipe is to end with."""
    held = Run.objects.filter(pk=run.pk, driver=run.driver, status=Status.RUNNING)
    if held.update(driver_until=now() + DRIVER_LEASE) != 1:
        raise DriverLost(f"{run.driver} does not drive {run.pk} any more")


def announce_driverless(*, limit: int | None = None) -> int:
    """Send for runs whose driver has died or never came, oldest first. Returns how many.

    Not again for a while: where every recipe's place is taken, messages would only pile up.
    """
    unheard = Q(driver_until=None) | Q(driver_until__lt=now())
    waiting = Run.objects.filter(unheard, HAS_TURN, status__in=(Status.QUEUED, Status.RUNNING))
    return sum(
        _announce_run(run_id, waiting)
        for run_id in waiting.exclude(recipe="")
        .order_by("created_at")
        .values_list("pk", flat=True)[:limit]
    )


def _announce_run(run_id: str, waiting: RunQuerySet) -> bool:
    said = waiting.filter(pk=run_id).update(driver="", driver_until=now() + ANNOUNCED) == 1
    if said:
        send_task(TRAIN_RUN, run_id)
    return said


def invite_next() -> None:
    """A recipe's place is free: whoever has waited longest need not wait for the beat."""
    waiting = Run.objects.filter(HAS_TURN, status=Status.QUEUED, driver="").exclude(recipe="")
    oldest = waiting.order_by("created_at").values_list("pk", flat=True).first()
    if oldest is not None:
        send_task(TRAIN_RUN, oldest)


def release_driver(run: Run) -> None:
    """The process ends and the run goes on: the next one need not wait for the lease."""
    held = Run.objects.filter(pk=run.pk, driver=run.driver, status=Status.RUNNING)
    held.update(driver="", driver_until=None)


def list_drivers(*, prefix: str) -> list[str]:
    """Who drives now, of those whose name begins so."""
    driven = Run.objects.filter(status=Status.RUNNING, driver__startswith=prefix)
    return list(driven.values_list("driver", flat=True))


def free_driven_by(driver: str) -> None:
    """It has ended without a word: the next one need not wait for its lease."""
    Run.objects.filter(driver=driver).update(driver="", driver_until=None)


def check_stop(run: Run) -> None:
    """Raises Cancelled where somebody pressed Stop; `run` may be an old copy of the row."""
    if _read_wish(run) == Wish.STOP:
        raise Cancelled


def check_wish(run: Run) -> None:
    """Between two steps a pause counts too."""
    wish = _read_wish(run)
    if wish == Wish.STOP:
        raise Cancelled
    if wish == Wish.PAUSE:
        raise Paused


def _read_wish(run: Run) -> str:
    wish: str = Run.objects.values_list("wish", flat=True).get(pk=run.pk)
    return wish


def record_step(run: Run, step: int, metrics: Mapping[str, float]) -> None:
    """Write what a step brought. Raises what the recipe is to end with."""
    renew_driver(run)
    record_metrics(run, step, metrics)
    if "loss" in metrics:
        newest = Run.objects.filter(pk=run.pk, step__lte=step + 1)  # one may be under way
        newest.update(last_loss=keep_finite(metrics["loss"]))
    check_wish(run)


@transaction.atomic
def take_orders(run: Run, step: int, *, is_replay: bool) -> Orders:
    """A wish is bound to the step that takes it, so that a replay does the same at the same place.

    A step that is being replayed takes no new one: its place in the log is followed by others.
    """
    row = Run.objects.select_for_update().get(pk=run.pk)
    steering = dict(row.steering) if is_replay else _take_wishes(run, row.steering, step)
    if steering != row.steering:
        Run.objects.filter(pk=run.pk).update(steering=steering)
    return Orders(
        learning_rate=steering.get("learning_rate"),
        kl_coefficient=steering.get("kl_coefficient"),
        save=step in steering.get("save_at", []),
        evaluate=step in steering.get("evaluate_at", []),
    )


def _take_wishes(run: Run, steering: Mapping[str, Any], step: int) -> dict[str, Any]:
    taken = dict(steering)
    for verb in ("save", "evaluate"):
        if taken.pop(f"{verb}_now", False):
            taken[f"{verb}_at"] = [*taken.get(f"{verb}_at", []), step]
    for text, user_id in taken.pop("said", []):
        user = User.objects.filter(pk=user_id).first()
        annotate(run, step, Annotation.Kind.STEERING, text, user=user)
    return taken


def wants_stop(run: Run) -> bool:
    """Somebody asked the run to end at its next checkpoint; `run` may be an old copy."""
    steering = Run.objects.values_list("steering", flat=True).get(pk=run.pk)
    return bool(steering.get("stop_after_save"))


def read_early_end(run: Run) -> int | None:
    """The step at which the run's own rule ended it; `run` may be an old copy."""
    steering = Run.objects.values_list("steering", flat=True).get(pk=run.pk)
    step: int | None = steering.get("early_end")
    return step


@transaction.atomic
def record_early_end(run: Run, step: int) -> None:
    row = Run.objects.select_for_update().get(pk=run.pk)
    Run.objects.filter(pk=run.pk).update(steering={**row.steering, "early_end": step})


def set_total_steps(run: Run, total_steps: int) -> None:
    Run.objects.filter(pk=run.pk).update(total_steps=total_steps)
    publish(run_group(run.pk), "status")


def finish_run(run: Run, status: str, *, error: str = "", category: str = "") -> bool:
    """The driver's last act; `paused` may be taken up again. False: it was not ours to end."""
    ended_at = None if status == Status.PAUSED else now()
    ended = Run.objects.filter(pk=run.pk, driver=run.driver, status=Status.RUNNING).update(
        status=status,
        wish=Wish.NONE,
        error=error,
        error_category=category,
        ended_at=ended_at,
        driver="",
        driver_until=None,
    )
    if ended and ended_at is not None:
        fail_waiting(run, error="The run has ended.", category="user")
        tell_end(run)
        call_followers(run)
    announce(run)
    return ended == 1
