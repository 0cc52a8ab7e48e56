"""A training loss that falls while the held-out loss rises: rows are learned by heart."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from django.db.models import Avg

from webapp.checkpoints.models import Checkpoint
from webapp.runs.models import Run
from webapp.runs.thresholds import DEFAULTS, Limits
from workers.diagnosing.points import Point, read_newest
from workers.diagnosing.verdict import NOTHING, Verdict, clear, found, not_applicable, waiting
from workers.repeats import FORWARD_LOSS_KEY

EVALUATIONS = 200  # newest, of one run
CHECKPOINTS = 200


def look(run: Run, memory: Mapping[str, Any] = NOTHING, limits: Limits = DEFAULTS) -> Verdict:
    held_out = read_newest(run, "held_out_loss", EVALUATIONS)
    if not held_out and not run.recipe:
        held_out = read_newest(run, FORWARD_LOSS_KEY, EVALUATIONS)
    if not held_out:
        return not_applicable("No loss on held-out rows is measured.")
    trained = measure_trained(run, held_out[-limits.rises - 1 :])
    verdict = judge(held_out, trained, since=memory.get("since"), limits=limits)
    best = min(held_out, key=lambda point: point.value)
    return with_checkpoint(run, best, verdict)


def measure_trained(run: Run, held_out: Sequence[Point]) -> list[float]:
    """The mean training loss between each two evaluations."""
    losses = run.metrics.filter(key="loss")
    means = [
        losses.filter(step__gt=before.step, step__lte=after.step).aggregate(mean=Avg("value"))[
            "mean"
        ]
        for before, after in pairwise(held_out)
    ]
    return [value for value in means if value is not None]


def judge(
    held_out: Sequence[Point],
    trained: Sequence[float],
    *,
    since: int | None,
    limits: Limits = DEFAULTS,
) -> Verdict:
    """Once seen it holds until the held-out loss is back near its best."""
    best, last = min(held_out, key=lambda point: point.value), held_out[-1]
    is_above = last.value > best.value + abs(best.value) * limits.rise_share
    if len(held_out) <= limits.rises:
        return waiting(f"It takes {limits.rises + 1} evaluations; there are {len(held_out)}.")
    if not is_above or not (since is not None or is_rising(held_out, trained, limits.rises)):
        return clear(f"The held-out loss is {last.value:.4g}; its best was {best.value:.4g}.")
    text = (
        f"The held-out loss rose to {last.value:.4g} by step {last.step:,} while the training loss"
        f" went on falling; it was best at step {best.step:,} with {best.value:.4g}. It is said"
        f" after {limits.rises} rises in a row, {limits.rise_share:.0%} above the best. Stop here"
        " and branch from the best."
    )
    step = last.step if since is None else since
    facts = {"best_step": best.step, "best_loss": best.value}
    return found(text, step=step, facts=facts, memory={"since": step})


def is_rising(held_out: Sequence[Point], trained: Sequence[float], rises: int) -> bool:
    newest = held_out[-rises - 1 :]
    is_up = all(before.value < after.value for before, after in pairwise(newest))
    return is_up and len(trained) >= 2 and trained[-1] < trained[0]


def with_checkpoint(run: Run, best: Point, verdict: Verdict) -> Verdict:
    """Names what to branch from."""
    if "best_step" not in verdict.facts:
        return verdict
    rows = Checkpoint.objects.loadable().filter(run=run, is_ephemeral=False)
    nearest = min(
        rows.order_by("-step")[:CHECKPOINTS],
        key=lambda each: (abs(each.step - best.step), each.kind != Checkpoint.Kind.TRAINING),
        default=None,
    )
    said = f" It was saved as {nearest.name}." if nearest else " No checkpoint of it was kept."
    if nearest is not None and nearest.step != best.step:
        said = f" The nearest checkpoint is {nearest.name}, of step {nearest.step:,}."
    named = [] if nearest is None else [name(nearest, best)]
    facts = {**verdict.facts, "checkpoints": named}
    return found(verdict.text + said, step=verdict.step, facts=facts, memory=verdict.memory)


def name(checkpoint: Checkpoint, best: Point) -> dict[str, Any]:
    return {
        "id": checkpoint.pk,
        "name": checkpoint.name,
        "step": checkpoint.step,
        "why": f"branch from here: the best held-out loss was at step {best.step:,}",
        "can_keep": checkpoint.expires_at is not None,
    }
