"""Runs that follow another one: each waits for it, and takes over what it made."""

from typing import Any

from django.db.models import Q
from django.utils.timezone import now

from webapp.core.dispatch import TRAIN_RUN, send_task
from webapp.runs.endings import tell_end
from webapp.runs.models import LogLine, Run
from webapp.runs.queue import fail_waiting
from webapp.runs.services import add_log, announce

Status = Run.Status
OVER = (Status.DONE, Status.FAILED, Status.CANCELLED)
# Of runs that want a driver: the one before is over, or they began long ago.
HAS_TURN = Q(after=None) | Q(after__status__in=OVER) | Q(status=Status.RUNNING)
JUDGE = "reward_model"  # the recipe whose last checkpoint is no parent, but a judge


def name_judge(run: Run) -> str:
    """What stands in a run's config for the checkpoint of a reward model that is not there yet."""
    return f"run:{run.pk}"


def begin_after(run_id: str) -> bool:
    """Whether the run may begin, as far as it follows another. It fails where that one did."""
    waiting = Run.objects.filter(pk=run_id, status=Status.QUEUED, started_at=None)
    run = waiting.exclude(after=None).select_related("after", "after__after").first()
    if run is None or run.after is None:
        return True
    if run.after.status == Status.DONE:
        return take_over(run, run.after)
    if run.after.is_over:
        said = "failed" if run.after.status == Status.FAILED else "was stopped"
        fail_before(run, f"It follows {run.after.name}, which {said}.")
    return False


def take_over(run: Run, before: Run) -> bool:
    """The last checkpoint of the run before: this one's parent, or its judge."""
    if run.recipe == JUDGE:
        return True  # it only comes later: it judges answers whoever wrote them
    made = find_last(before)
    parent = made if before.recipe != JUDGE else find_last(before.after)
    if made is None or (parent is None and before.after is not None):
        fail_before(run, f"It follows {before.name}, of which no checkpoint is left.")
        return False
    changes: dict[str, Any] = {}
    if before.recipe == JUDGE:
        changes["config"] = put_judge(run, name_judge(before), made.pk)
    if parent is not None:
        changes |= {"parent": parent, "lora": parent.run.lora}
    waiting = Run.objects.filter(pk=run.pk, status=Status.QUEUED, started_at=None)
    if waiting.exclude(**changes).update(**changes):
        add_log(run, f"{before.name} is done: this run goes on with what it made.")
    return True


def find_last(run: Run | None) -> Any | None:
    if run is None:
        return None
    kept = run.checkpoints.filter(kind="training", deleted_at=None, is_ephemeral=False)
    return kept.order_by("-step", "-created_at").select_related("run").first()


def put_judge(run: Run, placeholder: str, checkpoint_id: str) -> dict[str, Any]:
    graders = [
        {**each, "checkpoint": checkpoint_id} if each.get("checkpoint") == placeholder else each
        for each in run.config.get("graders", [])
    ]
    return {**run.config, "graders": graders}


def fail_before(run: Run, error: str) -> None:
    """Before its first step; those that follow it hear of it too."""
    waiting = Run.objects.filter(pk=run.pk, status=Status.QUEUED)
    failed = waiting.update(
        status=Status.FAILED, error=error, error_category="user", ended_at=now()
    )
    if failed:
        fail_waiting(run, error=error, category="user")
        add_log(run, f"Failed: {error}", LogLine.Level.ERROR)
        tell_end(run)
        announce(run)
        call_followers(run)


def call_followers(run: Run) -> None:
    """Of a run that is over: whoever waits for it begins, or fails with it."""
    for run_id in run.next.filter(status=Status.QUEUED).values_list("pk", flat=True):
        send_task(TRAIN_RUN, run_id)
