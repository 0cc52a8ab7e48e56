"""A sampling client that is kept over several saves, and goes on with old weights."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any

from webapp.checkpoints.models import Checkpoint
from webapp.deployments.models import SamplingCall
from webapp.runs.models import Run
from webapp.runs.thresholds import DEFAULTS, Limits
from workers.diagnosing.thresholds import STALE_CALLS
from workers.diagnosing.verdict import NOTHING, Verdict, clear, found, not_applicable, waiting

Purpose = SamplingCall.Purpose

SAVES = 64  # newest, of one run
CALLS = 1000  # newest, of one run
OWN = (Purpose.TINKER, Purpose.FIRETITAN, Purpose.ROLLOUT)  # what a training loop samples by


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    at: datetime
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request for samples, and when the weights that it asks for were saved."""

    at: datetime
    saved_at: datetime
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The calls between two saves: how far behind the freshest of them was."""

    newest: Save
    behind: int  # saves
    steps: int
    num_calls: int


def look(run: Run, _memory: Mapping[str, Any] = NOTHING, limits: Limits = DEFAULTS) -> Verdict:
    rows = Checkpoint.objects.filter(run=run, kind=Checkpoint.Kind.SAMPLER, is_inflight=False)
    saves = rows.order_by("-seq").values_list("created_at", "step")[:SAVES]
    if len(saves) <= limits.saves_behind:
        return not_applicable(f"Fewer than {limits.saves_behind + 1} sets of weights for samplers.")
    calls = read_calls(run, since=saves[len(saves) - 1][0])
    return judge([Save(at=at, step=step) for at, step in saves][::-1], calls, limits)


def read_calls(run: Run, *, since: datetime) -> list[Call]:
    rows = SamplingCall.objects.filter(checkpoint__run=run, purpose__in=OWN, created_at__gte=since)
    columns = ("created_at", "checkpoint__created_at", "checkpoint__step")
    newest = rows.order_by("-pk").values_list(*columns)[:CALLS]
    return [Call(at=at, saved_at=saved, step=step) for at, saved, step in newest][::-1]


def judge(saves: Sequence[Save], calls: Sequence[Call], limits: Limits = DEFAULTS) -> Verdict:
    """An old snapshot beside a fresh one is a reference, and one that is asked once more at the end
    is a comparison: only who goes on with it, and with nothing newer, has forgotten it."""
    if not calls:
        return waiting("Nothing was sampled from the run's weights lately.")
    stale = list_stale(list_intervals(saves, calls), limits.saves_behind)
    if len(stale) < 2 or sum(each.num_calls for each in stale) < STALE_CALLS:
        return clear("The newest samples come from the newest weights, or from those before.")
    first, newest = stale[0], stale[-1]
    text = (
        f"Samples are drawn from weights that are {newest.steps} optimizer steps and"
        f" {newest.behind} saves older than the newest; it is said from {limits.saves_behind} saves"
        " on. Create the sampling client again after each save_weights_for_sampler."
    )
    numbers = {"saves behind": newest.behind, "optimizer steps behind": newest.steps}
    return found(text, step=first.newest.step, facts={"numbers": numbers})


def list_intervals(saves: Sequence[Save], calls: Sequence[Call]) -> list[Interval]:
    """Those in which anything was sampled, in order."""
    moments = [save.at for save in saves]
    by_place: dict[int, list[Call]] = {}
    for call in calls:
        by_place.setdefault(bisect_right(moments, call.at) - 1, []).append(call)
    return [measure(saves, place, by_place[place]) for place in sorted(by_place) if place >= 0]


def measure(saves: Sequence[Save], place: int, calls: Sequence[Call]) -> Interval:
    freshest, newest = max(calls, key=lambda call: call.saved_at), saves[place]
    behind = sum(1 for save in saves[: place + 1] if save.at > freshest.saved_at)
    return Interval(
        newest=newest, behind=behind, steps=newest.step - freshest.step, num_calls=len(calls)
    )


def list_stale(intervals: Sequence[Interval], saves_behind: int) -> list[Interval]:
    """Those at the end in which nothing fresher was sampled, in order."""
    rest = takewhile(lambda each: each.behind >= saves_behind, reversed(intervals))
    return list(rest)[::-1]
