"""What a person does to a run while it learns; each act is in its log and on its curves."""

from typing import Any

from django.db import transaction
from django.db.models import Q
from django.utils.timezone import now

from webapp.accounts.audit import record_audit
from webapp.accounts.models import Actor
from webapp.core.dispatch import TRAIN_RUN, send_task
from webapp.core.errors import UserError
from webapp.core.events import publish, run_group
from webapp.runs.annotations import annotate
from webapp.runs.models import Run
from webapp.runs.queue import fail_waiting
from webapp.runs.records import Annotation
from webapp.runs.services import add_log, announce

MOST_KL = 100.0

Status = Run.Status
Wish = Run.Wish


def request_pause(*, actor: Actor, run: Run) -> None:
    """A queued run pauses now, a running one between two steps."""
    check_has_recipe(run, "paused")
    mine = Run.objects.visible_to(actor).filter(pk=run.pk)
    if mine.filter(status=Status.QUEUED).update(status=Status.PAUSED):
        add_log(run, f"Paused by {actor.user} before it began.")
    elif mine.filter(status=Status.RUNNING, wish=Wish.NONE).update(wish=Wish.PAUSE):
        add_log(run, f"{actor.user} pressed Pause: the run ends this step first.")
        _mark(run, actor, "paused")
    announce(run)


def resume_run(*, actor: Actor, run: Run) -> None:
    """The recipe begins again, and finds what it has done already in the log."""
    paused = Run.objects.visible_to(actor).filter(pk=run.pk, status=Status.PAUSED)
    if paused.update(status=Status.QUEUED, wish=Wish.NONE, driver="") != 1:
        raise UserError("Only a paused run can be resumed.")
    add_log(run, f"Resumed by {actor.user}.")
    _mark(run, actor, "resumed")
    send_task(TRAIN_RUN, run.pk)
    announce(run)


def request_stop(*, actor: Actor, run: Run) -> None:
    """What has trained saves a checkpoint first; a client's run ends at once."""
    mine = Run.objects.visible_to(actor).filter(pk=run.pk)
    live = mine.filter(status__in=(Status.QUEUED, Status.RUNNING, Status.PAUSED))
    without_weights = Q(recipe="") | (Q(step=0) & ~Q(status=Status.RUNNING))
    if live.filter(without_weights).update(status=Status.CANCELLED, ended_at=now(), driver=""):
        add_log(run, f"Stopped by {actor.user}.")
        fail_waiting(run, error="This run was stopped by a person.", category="user")
    elif live.filter(status=Status.PAUSED).update(status=Status.QUEUED, wish=Wish.STOP):
        add_log(run, f"{actor.user} pressed Stop: a last checkpoint is saved first.")
        send_task(TRAIN_RUN, run.pk)
    elif live.exclude(wish=Wish.STOP).update(wish=Wish.STOP):
        add_log(run, f"{actor.user} pressed Stop: the run ends this step and saves a checkpoint.")
    if not run.is_over:
        _mark(run, actor, "stopped")
        record_audit(project=run.project_id, user=actor.user, event="run_stopped", run=run.pk)
    announce(run)


def change_learning_rate(*, actor: Actor, run: Run, learning_rate: float) -> None:
    """The schedule's new peak: warm-up and decay go on from it, in proportion."""
    check_has_recipe(run, "given another learning rate")
    if not 0 < learning_rate <= 1:
        raise UserError(
            f"The learning rate is {learning_rate}: it lies above 0 and up to 1.",
            field="learning_rate",
        )
    said = f"learning rate {learning_rate:g}"
    _steer(run, actor, said, learning_rate=learning_rate)
    add_log(run, f"{actor.user} set the learning rate to {learning_rate:g} from the next step on.")


def change_kl_coefficient(*, actor: Actor, run: Run, kl_coefficient: float) -> None:
    """How much the distance to the reference costs, from the next batch on."""
    check_has_recipe(run, "given another KL coefficient")
    if "kl_coefficient" not in run.config:
        raise UserError(
            f"A run of {run.recipe} has no KL coefficient: it does not measure a distance to a"
            " reference.",
            field="kl_coefficient",
        )
    if not 0 <= kl_coefficient <= MOST_KL:
        raise UserError(
            f"The KL coefficient is {kl_coefficient}: it lies from 0 to {MOST_KL:g}.",
            field="kl_coefficient",
        )
    said = f"KL coefficient {kl_coefficient:g}"
    _steer(run, actor, said, kl_coefficient=kl_coefficient)
    add_log(run, f"{actor.user} set the {said} from the next step on.")


def request_save(*, actor: Actor, run: Run) -> None:
    check_has_recipe(run, "saved from here")
    _steer(run, actor, "saved by hand", save_now=True)
    add_log(run, f"{actor.user} asked for a checkpoint after this step.")


def request_evaluation(*, actor: Actor, run: Run) -> None:
    check_has_recipe(run, "evaluated from here")
    _steer(run, actor, "evaluated by hand", evaluate_now=True)
    add_log(run, f"{actor.user} asked for an evaluation after this step.")


def request_stop_after_save(*, actor: Actor, run: Run) -> None:
    """It ends where its cadence saves next: nothing is trained that no checkpoint has."""
    check_has_recipe(run, "stopped at its next checkpoint")
    _steer(run, actor, "to stop at the next checkpoint", stop_after_save=True)
    add_log(run, f"{actor.user} asked the run to stop after its next checkpoint.")


def check_has_recipe(run: Run, what: str) -> None:
    if not run.recipe:
        raise UserError(f"This run's own program decides what happens: it cannot be {what}.")
    if run.is_over:
        raise UserError(f"This run has ended: it cannot be {what}.")


@transaction.atomic
def _steer(run: Run, actor: Actor, said: str, **changes: Any) -> None:
    """`said` becomes an annotation at the step that takes the change: the driver knows which."""
    steering = Run.objects.select_for_update().values_list("steering", flat=True).get(pk=run.pk)
    waiting = [*steering.get("said", []), [said, actor.user.pk]]
    Run.objects.filter(pk=run.pk).update(steering={**steering, **changes, "said": waiting})
    publish(run_group(run.pk), "status")


def _mark(run: Run, actor: Actor, text: str) -> None:
    step = Run.objects.values_list("step", flat=True).get(pk=run.pk)
    annotate(run, step, Annotation.Kind.STEERING, text, user=actor.user)
