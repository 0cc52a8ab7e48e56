"""Reward hacking of a client's own loop, whose answers are here only as tokens with advantages."""

from collections.abc import Sequence

from webapp.runs.models import Run
from workers.diagnosing.points import Point, mean, read_newest
from workers.diagnosing.thresholds import LENGTH_CORRELATION, LENGTH_GROWTH, REPEATED_SHARE
from workers.diagnosing.verdict import Verdict, clear, found, not_applicable, waiting
from workers.signal import LENGTH_CORRELATION_KEY, LENGTH_KEY, REPEATED_KEY

POINTS = 4  # steps, at least
POINTS_KEPT = 32
ADVICE = "Read the answers of these steps, and change the reward so that they earn nothing."


def look(run: Run) -> Verdict:
    keys = (LENGTH_KEY, LENGTH_CORRELATION_KEY, REPEATED_KEY)
    return judge(*(read_newest(run, key, POINTS_KEPT) for key in keys))


def judge(
    lengths: Sequence[Point], correlations: Sequence[Point], repeated: Sequence[Point]
) -> Verdict:
    if not lengths:
        return not_applicable("No step of this run has learned from advantages.")
    if len(lengths) < POINTS:
        return waiting(f"It takes {POINTS} steps that learn from advantages.")
    signs = [sign for sign in (see_length(lengths, correlations), see_repeats(repeated)) if sign]
    if not signs:
        return clear(f"Nothing of the kind in the last {len(lengths)} steps.")
    newest = lengths[-1]
    first = repeated[-POINTS:][0] if repeated else lengths[-POINTS:][0]
    numbers = {"newest step": f"{newest.step:,}", "mean length, tokens": f"{newest.value:.0f}"}
    return found(" ".join([*signs, ADVICE]), step=first.step, facts={"numbers": numbers})


def see_length(lengths: Sequence[Point], correlations: Sequence[Point]) -> str:
    if len(correlations) < POINTS:
        return ""
    correlation = mean(list(correlations[-POINTS:]))
    half = len(lengths) // 2
    growth = mean(list(lengths[half:])) / max(mean(list(lengths[:half])), 1.0)
    if correlation < LENGTH_CORRELATION or growth < LENGTH_GROWTH:
        return ""
    return (
        f"Longer answers get the higher advantages (correlation {correlation:.2f}), and answers"
        f" grew {growth:.1f} times as long."
    )


def see_repeats(repeated: Sequence[Point]) -> str:
    if len(repeated) < POINTS:
        return ""
    share = mean(list(repeated[-POINTS:]))
    if share < REPEATED_SHARE:
        return ""
    return f"Of the answers that are rewarded, {share:.0%} are phrases that were there before."
