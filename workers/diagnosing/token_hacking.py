"""Reward hacking of a client's own loop, whose answers are here only as tokens with advantages."""

from collections.abc import Sequence

from webapp.runs.models import Run
from webapp.runs.thresholds import DEFAULTS, Limits
from workers.diagnosing.points import Point, mean, read_newest
from workers.diagnosing.thresholds import LENGTH_GROWTH
from workers.diagnosing.verdict import Verdict, clear, found, not_applicable, waiting
from workers.signal import LENGTH_CORRELATION_KEY, LENGTH_KEY, REPEATED_KEY

POINTS = 4  # steps, at least
POINTS_KEPT = 32
ADVICE = "Read the answers of these steps, and change the reward so that they earn nothing."


def look(run: Run, limits: Limits = DEFAULTS) -> Verdict:
    keys = (LENGTH_KEY, LENGTH_CORRELATION_KEY, REPEATED_KEY)
    lengths, correlations, repeated = (read_newest(run, key, POINTS_KEPT) for key in keys)
    return judge(lengths, correlations, repeated, limits)


def judge(
    lengths: Sequence[Point],
    correlations: Sequence[Point],
    repeated: Sequence[Point],
    limits: Limits = DEFAULTS,
) -> Verdict:
    if not lengths:
        return not_applicable("No step of this run has learned from advantages.")
    if len(lengths) < POINTS:
        return waiting(f"It takes {POINTS} steps that learn from advantages.")
    seen = (see_length(lengths, correlations, limits), see_repeats(repeated, limits))
    signs = [sign for sign in seen if sign]
    if not signs:
        return clear(f"Nothing of the kind in the last {len(lengths)} steps.")
    newest = lengths[-1]
    first = repeated[-POINTS:][0] if repeated else lengths[-POINTS:][0]
    numbers = {"newest step": f"{newest.step:,}", "mean length, tokens": f"{newest.value:.0f}"}
    return found(" ".join([*signs, ADVICE]), step=first.step, facts={"numbers": numbers})


def see_length(lengths: Sequence[Point], correlations: Sequence[Point], limits: Limits) -> str:
    if len(correlations) < POINTS:
        return ""
    correlation = mean(list(correlations[-POINTS:]))
    half = len(lengths) // 2
    growth = mean(list(lengths[half:])) / max(mean(list(lengths[:half])), 1.0)
    if correlation < limits.length_correlation or growth < LENGTH_GROWTH:
        return ""
    return (
        f"Longer answers get the higher advantages (correlation {correlation:.2f}; the limit is"
        f" {limits.length_correlation:g}), and answers grew {growth:.1f} times as long."
    )


def see_repeats(repeated: Sequence[Point], limits: Limits) -> str:
    if len(repeated) < POINTS:
        return ""
    share = mean(list(repeated[-POINTS:]))
    if share < limits.repeated_share:
        return ""
    return (
        f"Of the answers that are rewarded, {share:.0%} are phrases that were there before; the"
        f" limit is {limits.repeated_share:.0%}."
    )
