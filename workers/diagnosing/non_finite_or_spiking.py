"""A loss or a gradient norm that jumps, and steps that were refused as not finite."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from webapp.runs.models import Operation, Run
from webapp.runs.records import Finding
from webapp.runs.thresholds import DEFAULTS, Limits
from workers.diagnosing.batches import describe_batch, describe_requests
from workers.diagnosing.points import Point, read_first, read_newest
from workers.diagnosing.thresholds import (
    CALM_STEPS,
    LOSS_NATS,
    LOSS_SPREADS,
    WINDOW,
)
from workers.diagnosing.verdict import NOTHING, Verdict, clear, found, waiting

Kind, Status = Operation.Kind, Operation.Status

NOT_FINITE = "not finite"
ADVICE = "Look at what was in the batch, lower the learning rate, or set grad_clip_norm to 1."


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike:
    step: int
    value: float
    usual: float  # the median of the steps before
    name: str
    limit: float  # above this it is not over


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    seq: int
    step: int  # steps done before it
    since: int  # steps done after it


def look(run: Run, memory: Mapping[str, Any] = NOTHING, limits: Limits = DEFAULTS) -> Verdict:
    refused, remembered = find_refused(run, memory)
    losses, norms = read_newest(run, "loss", 2 * WINDOW), read_newest(run, "grad_norm", 2 * WINDOW)
    if refused is not None and refused.since < WINDOW:
        return tell_refused(run, refused, remembered)
    floor = median(read_first(run, "grad_norm", CALM_STEPS) or [0.0])
    lasting = find_lasting(losses, memory.get("spike"))
    spike = lasting or find_spike(losses, norms, floor, limits)
    if spike is None:
        return judge_calm(losses, remembered)
    known = memory.get("facts", {}) if memory.get("step") == spike.step else {}
    facts = known or {"step": spike.step, **describe_batch(run, spike.step)}
    kept = {**remembered, "facts": facts, "step": spike.step}
    if spike.name == "loss":
        kept["spike"] = [spike.step, spike.value, spike.usual, spike.limit]
    return found(say(spike), step=spike.step, facts=facts, memory=kept)


def find_refused(run: Run, memory: Mapping[str, Any]) -> tuple[Refusal | None, Mapping[str, Any]]:
    """The newest; what was read of the log is not read again."""
    steps = Operation.objects.filter(run=run, kind=Kind.OPTIM_STEP)
    read_to = memory.get("read_to", -1)
    failed = steps.filter(status=Status.FAILED, seq__gt=read_to, error__contains=NOT_FINITE)
    newest = failed.order_by("-seq").values_list("seq", flat=True).first()
    seq = newest if newest is not None else memory.get("refused")
    remembered = {"read_to": max(run.done_seq, read_to), "refused": seq}
    if seq is None:
        return None, remembered
    since = len(steps.filter(status=Status.DONE, seq__gt=seq).values_list("pk")[:WINDOW])
    return Refusal(seq=seq, step=max(run.step - since, 0), since=since), remembered


def tell_refused(run: Run, refused: Refusal, memory: Mapping[str, Any]) -> Verdict:
    """At the step that it would have been."""
    text = (
        f"A step after step {refused.step:,} was refused: its gradients were not finite, and the"
        f" weights are as before. {ADVICE}"
    )
    step = refused.step + 1
    facts = {"step": step, **describe_requests(run, before=refused.seq)}
    return found(text, step=step, level=Finding.Level.ERROR, facts=facts, memory=memory)


def judge_calm(losses: Sequence[Point], memory: Mapping[str, Any]) -> Verdict:
    if len(losses) <= CALM_STEPS:
        return waiting(f"A spike is one against at least {CALM_STEPS} steps before it.", memory)
    return clear(f"Nothing jumped in the last {min(len(losses), WINDOW)} steps.", memory)


def find_spike(
    losses: Sequence[Point],
    norms: Sequence[Point],
    floor: float = 0.0,
    limits: Limits = DEFAULTS,
) -> Spike | None:
    """The newest within the last steps; that of the loss is the one that is told.

    `floor`: what the norm was when the run began. Where it has nearly learned its rows the norm is
    a small part of that, and a row that is new to it is many times as much and no harm.
    """
    jumps = find_newest(losses, "loss", partial(limit_loss, factor=limits.loss_factor))
    of_norm = partial(limit_norm, floor=floor, factor=limits.norm_factor)
    return jumps or find_newest(norms, "gradient norm", of_norm)


def find_newest(
    points: Sequence[Point], name: str, limit_of: Callable[[Sequence[float]], float | None]
) -> Spike | None:
    first = max(len(points) - WINDOW, CALM_STEPS)
    for place in range(len(points) - 1, first - 1, -1):
        before = [point.value for point in points[max(0, place - WINDOW) : place]]
        limit, point = limit_of(before), points[place]
        if limit is not None and point.value > limit:
            usual = median(before)
            return Spike(step=point.step, value=point.value, usual=usual, name=name, limit=limit)
    return None


def limit_loss(before: Sequence[float], *, factor: float) -> float | None:
    """None: a loss that may be negative is one of advantages, which says nothing by its size."""
    if min(before) <= 0:
        return None
    usual = median(before)
    spread = median(abs(value - usual) for value in before)
    return max(factor * usual, usual + LOSS_NATS, usual + LOSS_SPREADS * spread)


def limit_norm(before: Sequence[float], *, floor: float, factor: float) -> float | None:
    usual = median(before)
    return max(factor * usual, floor) if usual > 0 else None


def find_lasting(losses: Sequence[Point], kept: Sequence[float] | None) -> Spike | None:
    """A loss that has not come back: the steps since are no measure of what is usual."""
    if kept is None or not losses:
        return None
    step, value, usual, limit = kept
    is_over = losses[-1].value <= limit and losses[-1].step >= step + WINDOW
    if is_over:
        return None
    return Spike(step=int(step), value=value, usual=usual, name="loss", limit=limit)


def say(spike: Spike) -> str:
    times = spike.value / spike.usual if spike.usual else 0.0
    return (
        f"The {spike.name} jumped to {spike.value:.4g} at step {spike.step:,}, {times:.1f} times"
        f" the {spike.usual:.4g} of the steps before, and above the limit of {spike.limit:.4g}."
        f" {ADVICE}"
    )
