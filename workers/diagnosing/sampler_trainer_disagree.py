"""Log-probabilities that samples came with, against the learner's own: see workers.disagreement."""

from collections.abc import Mapping, Sequence
from typing import Any

from webapp.runs.models import Run
from webapp.runs.thresholds import DEFAULTS, Limits
from workers.diagnosing.ages import read_ages
from workers.diagnosing.points import Point, mean, read_newest
from workers.diagnosing.thresholds import LOOKED_BACK, MEASURED
from workers.diagnosing.verdict import NOTHING, Verdict, clear, found, not_applicable
from workers.disagreement import DIFFERENCE as DIFFERENCE_KEY
from workers.disagreement import KL as KL_KEY

ADVICE = (
    "Look at the renderer or chat template that made the prompts, at how old the sampled weights"
    " are, at a temperature other than 1 that the loss was not told, and at the sampler's"
    " precision."
)


def look(run: Run, _memory: Mapping[str, Any] = NOTHING, limits: Limits = DEFAULTS) -> Verdict:
    points = read_newest(run, DIFFERENCE_KEY, LOOKED_BACK)
    return judge(points, read_newest(run, KL_KEY, MEASURED), read_ages(run, points), limits)


def judge(
    differences: Sequence[Point],
    kls: Sequence[Point],
    ages: Sequence[Point] = (),
    limits: Limits = DEFAULTS,
) -> Verdict:
    """Samples of weights that are some steps old differ by what was learned since: where there are
    fresh ones, those count."""
    if not differences:
        return not_applicable("No step has learned from samples with log-probabilities yet.")
    old = {age.step for age in ages if age.value >= 1}
    fresh = [point for point in differences if point.step not in old][-MEASURED:]
    points = fresh or list(differences[-MEASURED:])
    allowed = limits.difference if fresh else limits.stale_difference
    whole, newest = mean(points), points[-1]
    if whole <= allowed:
        return clear(f"They differ by {whole:.2g} nats a token; {allowed:g} is the most allowed.")
    kl = f" (KL {mean(list(kls)):.2g})" if kls else ""
    text = (
        f"The log-probabilities that samples came with differ from the trainer's by {whole:.2g}"
        f" nats a token{kl} at step {newest.step:,}; {allowed:g} is the most allowed. {ADVICE}"
    )
    first = next(point for point in points if point.value > allowed)
    numbers = {f"at step {point.step:,}": f"{point.value:.4g} nats a token" for point in points}
    return found(text, step=first.step, facts={"numbers": numbers})
