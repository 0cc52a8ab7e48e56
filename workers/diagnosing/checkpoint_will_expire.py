"""A checkpoint that somebody needs, and that is deleted within a day."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.utils.timezone import now

from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import is_best
from webapp.deployments.models import Deployment
from webapp.evals.models import Alias, Evaluation
from webapp.runs.models import Run
from webapp.runs.thresholds import DEFAULTS, Limits
from workers.diagnosing.verdict import NOTHING, Verdict, clear, found, not_applicable

MOST = 50  # of one run, those that end first
EVALUATIONS = 500  # newest, of one run


@dataclass(frozen=True, slots=True, kw_only=True)
class Lasting:
    """A checkpoint with an end, and who needs it."""

    id: str
    name: str
    step: int
    expires_at: datetime
    reasons: tuple[str, ...]


def look(run: Run, _memory: Mapping[str, Any] = NOTHING, limits: Limits = DEFAULTS) -> Verdict:
    rows = Checkpoint.objects.alive().filter(run=run, is_ephemeral=False)
    if not rows.exclude(expires_at=None).exists():
        return not_applicable("None of its checkpoints has an end.")
    ending = rows.filter(expires_at__lt=now() + timedelta(hours=limits.expires_hours))
    shown = list(ending.order_by("expires_at")[:MOST])
    best = find_best(run) if shown else set()
    return judge([describe(each, best) for each in shown], moment=now(), limits=limits)


def describe(checkpoint: Checkpoint, best: set[str]) -> Lasting:
    served = checkpoint.deployments.exclude(status=Deployment.Status.STOPPED)
    named = Alias.objects.filter(checkpoint=checkpoint)
    reasons = {
        "served": served.exists() or named.exists(),
        "the parent of another run": checkpoint.branches.exists(),
        "the run's best": checkpoint.pk in best or is_best(checkpoint),
    }
    return Lasting(
        id=checkpoint.pk,
        name=checkpoint.name,
        step=checkpoint.step,
        expires_at=checkpoint.expires_at or now(),
        reasons=tuple(reason for reason, holds in reasons.items() if holds),
    )


def find_best(run: Run) -> set[str]:
    """Of each suite that its checkpoints were evaluated on, the one with the highest score."""
    rows = Evaluation.objects.filter(
        checkpoint__run=run, checkpoint__deleted_at=None, status=Evaluation.Status.DONE
    )
    best: dict[str, tuple[float, str]] = {}
    for each in rows.select_related("suite").defer("suite__items")[:EVALUATIONS]:
        score = each.first_score
        if score is not None and score > best.get(each.suite_id, (-1.0, ""))[0]:
            best[each.suite_id] = (score, each.checkpoint_id or "")
    return {checkpoint_id for _, checkpoint_id in best.values()}


def judge(ending: Sequence[Lasting], *, moment: datetime, limits: Limits = DEFAULTS) -> Verdict:
    until = moment + timedelta(hours=limits.expires_hours)
    needed = [each for each in ending if each.reasons and each.expires_at < until]
    if not needed:
        return clear(f"Nothing that is needed ends within {limits.expires_hours} hours.")
    first = min(needed, key=lambda each: each.expires_at)
    others = f", and {len(needed) - 1} more" if len(needed) > 1 else ""
    text = (
        f"{first.name} is {join(first.reasons)}, and its time {say_when(first, moment)}"
        f"{others}. Keep it. It is said {limits.expires_hours} hours before."
    )
    facts = [
        {
            "id": each.id,
            "name": each.name,
            "step": each.step,
            "why": f"{join(each.reasons)}; ends {each.expires_at:%Y-%m-%d %H:%M} UTC",
            "can_keep": True,
        }
        for each in needed
    ]
    return found(text, step=first.step, facts={"checkpoints": facts})


def join(reasons: Sequence[str]) -> str:
    return " and ".join(reasons)


def say_when(checkpoint: Lasting, moment: datetime) -> str:
    """In hours that do not change at each look: the sentence would be another one each time."""
    hours = (checkpoint.expires_at - moment).total_seconds() / 3600
    return f"ends on {checkpoint.expires_at:%d %B at %H:%M} UTC" if hours > 0 else "is over"
