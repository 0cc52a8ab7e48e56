"""Steps that learn from samples of weights that are long gone, or whose ratios are clipped."""

from collections.abc import Mapping, Sequence
from typing import Any

from webapp.runs.models import Run
from webapp.runs.thresholds import DEFAULTS, Limits
from workers.diagnosing.ages import STALENESS, read_ages
from workers.diagnosing.points import Point, mean, read_newest
from workers.diagnosing.thresholds import AGE_POINTS, CLIPPED_POINTS
from workers.diagnosing.verdict import NOTHING, Verdict, clear, found, not_applicable, waiting
from workers.disagreement import DIFFERENCE

CLIPPED = ("clip/share", "clipped")


def look(run: Run, _memory: Mapping[str, Any] = NOTHING, limits: Limits = DEFAULTS) -> Verdict:
    firsts = read_newest(run, DIFFERENCE, AGE_POINTS)
    ages = read_ages(run, firsts) or read_newest(run, STALENESS, AGE_POINTS)
    clipped = [points for key in CLIPPED if (points := read_newest(run, key, CLIPPED_POINTS))]
    return judge(ages, clipped[0] if clipped else [], limits)


def judge(ages: Sequence[Point], clipped: Sequence[Point], limits: Limits = DEFAULTS) -> Verdict:
    if not ages and not clipped:
        return not_applicable("No step has learned from samples of this run's own weights.")
    if len(ages) < AGE_POINTS and len(clipped) < CLIPPED_POINTS:
        return waiting(f"It takes {AGE_POINTS} steps that learn from samples.")
    age = mean(list(ages)) if len(ages) >= AGE_POINTS else 0.0
    share = mean(list(clipped)) if len(clipped) >= CLIPPED_POINTS else 0.0
    if age <= limits.age_steps and share <= limits.clipped_share:
        return clear(say(age, share, ages, clipped))
    first = find_first(ages, limits.age_steps if age > limits.age_steps else None)
    first = first or find_first(clipped, limits.clipped_share) or (clipped or ages)[0]
    text = (
        f"{say(age, share, ages, clipped)} It is said above {limits.age_steps:g} steps or"
        f" {limits.clipped_share:.0%}. Bound how old samples may be, make fewer steps of one batch,"
        " or use ppo or cispo, which bound the ratio."
    )
    numbers = {"age of samples, steps": f"{age:.1f}", "clipped share": f"{share:.0%}"}
    return found(text, step=first.step, facts={"numbers": numbers})


def find_first(points: Sequence[Point], limit: float | None) -> Point | None:
    if limit is None:
        return None
    return next((point for point in points if point.value > limit), None)


def say(age: float, share: float, ages: Sequence[Point], clipped: Sequence[Point]) -> str:
    parts = []
    if len(ages) >= AGE_POINTS:
        parts.append(f"samples are {age:.1f} optimizer steps old when they are learned from")
    if len(clipped) >= CLIPPED_POINTS:
        parts.append(f"the ratio of {share:.0%} of tokens is clipped")
    said = ", and ".join(parts)
    return f"{said[:1].upper()}{said[1:]}."
