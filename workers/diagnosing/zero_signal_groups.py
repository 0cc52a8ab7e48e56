"""Answers with no advantage: nothing is learned from them, and their sampling was for nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from webapp.runs.models import Run
from webapp.runs.thresholds import DEFAULTS, Limits
from workers.diagnosing.points import Point, mean, read_newest
from workers.diagnosing.thresholds import ZERO_STEPS, ZERO_STEPS_KEPT
from workers.diagnosing.verdict import NOTHING, Verdict, clear, found, not_applicable, waiting
from workers.signal import ZERO_SHARE_KEY

HARDER = "Use harder prompts, or easier ones where nothing succeeds."
OF_GROUPS = "frac_reward_zero_std"  # of a recipe, which drops such groups itself


def look(run: Run, _memory: Mapping[str, Any] = NOTHING, limits: Limits = DEFAULTS) -> Verdict:
    groups = read_newest(run, OF_GROUPS, ZERO_STEPS_KEPT)
    if groups:
        what = "groups of answers had all the same reward"
        return judge(groups, what=what, advice=HARDER, limits=limits)
    datums = read_newest(run, ZERO_SHARE_KEY, ZERO_STEPS_KEPT)
    what = "datums had advantages that are all zero"
    advice = f"Drop constant-reward groups before training. {HARDER}"
    return judge(datums, what=what, advice=advice, limits=limits)


def judge(
    points: Sequence[Point], *, what: str, advice: str = "", limits: Limits = DEFAULTS
) -> Verdict:
    if not points:
        return not_applicable("No step of this run has learned from advantages.")
    if len(points) < ZERO_STEPS:
        return waiting(f"It takes {ZERO_STEPS} steps that learn from advantages.")
    share = mean(list(points))
    said = f"{share:.0%} of the {what}, over the last {len(points)} steps"
    if share < limits.zero_share:
        return clear(f"{said}.")
    text = (
        f"{said}: nothing is learned from those. It is said from {limits.zero_share:.0%} on."
        f" {advice}"
    )
    first = next(point for point in points if point.value >= limits.zero_share)
    level = "error" if share == 1 else "warning"
    return found(text, step=first.step, level=level, facts={"numbers": {"share": f"{share:.0%}"}})
