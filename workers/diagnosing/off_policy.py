"""Steps that learn from samples of weights that are long gone, or whose ratios are clipped."""

from collections.abc import Mapping, Sequence
from typing import Any

from webapp.runs.models import Run
from workers.diagnosing.ages import STALENESS, read_ages
from workers.diagnosing.points import Point, mean, read_newest
from workers.diagnosing.thresholds import AGE_POINTS, AGE_STEPS, CLIPPED_POINTS, CLIPPED_SHARE
from workers.diagnosing.verdict import NOTHING, Verdict, clear, found, not_applicable, waiting
from workers.disagreement import DIFFERENCE

CLIPPED = ("clip/share", "clipped")


def look(run: Run, _memory: Mapping[str, Any] = NOTHING) -> Verdict:
    firsts = read_newest(run, DIFFERENCE, AGE_POINTS)
    ages = read_ages(run, firsts) or read_newest(run, STALENESS, AGE_POINTS)
    clipped = [points for key in CLIPPED if (points := read_newest(run, key, CLIPPED_POINTS))]
    return judge(ages, clipped[0] if clipped else [])


def judge(ages: Sequence[Point], clipped: Sequence[Point]) -> Verdict:
    if not ages and not clipped:
        return not_applicable("No step has learned from samples of this run's own weights.")
    if len(ages) < AGE_POINTS and len(clipped) < CLIPPED_POINTS:
        return waiting(f"It takes {AGE_POINTS} steps that learn from samples.")
    age = mean(list(ages)) if len(ages) >= AGE_POINTS else 0.0
    share = mean(list(clipped)) if len(clipped) >= CLIPPED_POINTS else 0.0
    if age <= AGE_STEPS and share <= CLIPPED_SHARE:
        return clear(say(age, share, ages, clipped))
    first = next((p for p in ages if age > AGE_STEPS and p.value > AGE_STEPS), None)
    first = first or next(p for p in (clipped or ages) if p.value > min(CLIPPED_SHARE, share))
    text = (
        f"{say(age, share, ages, clipped)} Bound how old samples may be, make fewer steps of one"
        " batch, or use ppo or cispo, which bound the ratio."
    )
    numbers = {"age of samples, steps": f"{age:.1f}", "clipped share": f"{share:.0%}"}
    return found(text, step=first.step, facts={"numbers": numbers})


def say(age: float, share: float, ages: Sequence[Point], clipped: Sequence[Point]) -> str:
    parts = []
    if len(ages) >= AGE_POINTS:
        parts.append(f"samples are {age:.1f} optimizer steps old when they are learned from")
    if len(clipped) >= CLIPPED_POINTS:
        parts.append(f"the ratio of {share:.0%} of tokens is clipped")
    said = ", and ".join(parts)
    return f"{said[:1].upper()}{said[1:]}."
