"""Two evaluations of one suite, sample by sample: what changed, and whether it can be chance."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from webapp.core.errors import UserError
from webapp.evals.models import EvalResult, Evaluation
from webapp.evals.naming import name_subject

CONFIDENCE_Z = 1.959963984540054  # 95%, two-sided
SIGNIFICANT = 0.05
RESAMPLES = 2000
BOOTSTRAP_SEED = 20_240_517  # fixed: the same two evaluations give the same interval


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedSample:
    """One item of the suite and its two answers; scores are the chosen grader's."""

    index: int
    item: Mapping[str, Any]  # messages, target, row
    first: EvalResult
    second: EvalResult
    first_score: float
    second_score: float

    @property
    def change(self) -> str:
        if self.second_score == self.first_score:
            return "same"
        return "better" if self.second_score > self.first_score else "worse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`difference`, `low` and `high` are percentage points, second minus first."""

    first: Evaluation
    second: Evaluation
    grader: str
    samples: Sequence[ComparedSample]  # what got worse first, then better, then the same
    num_left_out: int  # items that one of the two has no answer to
    first_mean: float
    second_mean: float
    wins: int
    losses: int
    difference: float
    low: float
    high: float
    p_value: float

    @property
    def ties(self) -> int:
        return len(self.samples) - self.wins - self.losses

    @property
    def is_significant(self) -> bool:
        return self.p_value < SIGNIFICANT

    @property
    def flips(self) -> Sequence[ComparedSample]:
        return self.samples[: self.wins + self.losses]

    @property
    def verdict(self) -> str:
        count, name = len(self.samples), name_subject(self.second)
        if not self.wins + self.losses:
            return f"No difference: both scored the same on all {count}."
        figures = (
            f"{'p < 0.0001' if self.p_value < 0.0001 else f'p = {self.p_value:.2g}'}, "
            f"{self.difference:+.1f} points [{self.low:.1f}, {self.high:.1f}]"
        )
        better = f"better on {self.wins}, worse on {self.losses}"
        if not self.is_significant:
            return f"No difference can be told from these {count}: {name} is {better} ({figures})."
        return f"{name} is {better} of {count} ({figures})."


def compare(first: Evaluation, second: Evaluation, *, grader: str = "") -> Comparison:
    """Paired, by the suite's first grader where none is named."""
    grader = _check_comparable(first, second, grader)
    samples = _pair_samples(first, second, grader)
    changes = [sample.second_score - sample.first_score for sample in samples]
    low, high = estimate_interval(
        [sample.first_score for sample in samples], [sample.second_score for sample in samples]
    )
    wins, losses = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    count = len(samples)
    return Comparison(
        first=first,
        second=second,
        grader=grader,
        samples=samples,
        num_left_out=first.suite.num_items - count,
        first_mean=sum(sample.first_score for sample in samples) / count,
        second_mean=sum(sample.second_score for sample in samples) / count,
        wins=wins,
        losses=losses,
        difference=100 * sum(changes) / count,
        low=100 * low,
        high=100 * high,
        p_value=compute_p_value(wins, losses),
    )


def compute_p_value(wins: int, losses: int) -> float:
    """Exact two-sided p-value that wins and losses are equally likely.

    For scores of 0 and 1 it is McNemar's exact test, else the sign test.
    """
    count = wins + losses
    if not count:
        return 1.0
    tail = sum(math.comb(count, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / (1 << count))


def estimate_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean difference, second minus first, of paired scores."""
    if {*first, *second} <= {0, 1}:
        return _newcombe_interval(first, second)
    return _bootstrap_interval([b - a for a, b in zip(first, second, strict=True)])


def _newcombe_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Newcombe 1998 (Statistics in Medicine 17, 2635-2650), method 10: Wilson's intervals of both
    shares, joined by their correlation. It keeps its coverage at 40 samples and at 0 or 100%.
    """
    count = len(first)
    pairs = list(zip(first, second, strict=True))
    both, neither = pairs.count((1, 1)), pairs.count((0, 0))
    only_first, only_second = pairs.count((1, 0)), pairs.count((0, 1))
    share_first, share_second = (both + only_first) / count, (both + only_second) / count
    low_first, high_first = _wilson_interval(share_first, count)
    low_second, high_second = _wilson_interval(share_second, count)
    phi = _correlate(both, only_first, only_second, neither)
    down = _join(share_second - low_second, high_first - share_first, phi)
    up = _join(high_second - share_second, share_first - low_first, phi)
    difference = share_second - share_first
    return max(-1.0, difference - down), min(1.0, difference + up)


def _wilson_interval(share: float, count: int) -> tuple[float, float]:
    z2 = CONFIDENCE_Z**2
    middle = share + z2 / (2 * count)
    spread = CONFIDENCE_Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return (middle - spread) / (1 + z2 / count), (middle + spread) / (1 + z2 / count)


def _correlate(both: int, only_first: int, only_second: int, neither: int) -> float:
    """Phi of the two by two table, with the method's continuity correction."""
    margins = (
        (both + only_first)
        * (only_second + neither)
        * (both + only_second)
        * (only_first + neither)
    )
    if not margins:
        return 0.0
    covariance: float = both * neither - only_first * only_second
    if covariance > 0:
        covariance = max(0.0, covariance - (both + only_first + only_second + neither) / 2)
    return covariance / math.sqrt(margins)


def _join(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))


def _bootstrap_interval(changes: Sequence[float]) -> tuple[float, float]:
    """Percentiles of the mean over resampled items, for graders that give parts of a point."""
    draw = random.Random(BOOTSTRAP_SEED)
    count = len(changes)
    means = sorted(sum(draw.choices(changes, k=count)) / count for _ in range(RESAMPLES))
    edge = round(RESAMPLES * 0.025)
    return means[edge], means[-1 - edge]


def _check_comparable(first: Evaluation, second: Evaluation, grader: str) -> str:
    if first.suite_id != second.suite_id:
        raise UserError("Only evaluations of one suite can be compared: their prompts differ.")
    for evaluation in (first, second):
        if evaluation.status != Evaluation.Status.DONE:
            raise UserError(f"The evaluation of {name_subject(evaluation)} has not finished.")
    names = [each["name"] for each in first.suite.graders]
    if grader and grader not in names:
        raise UserError(f"The suite has no grader {grader}: it has {', '.join(names)}.")
    return grader or names[0]


def _pair_samples(first: Evaluation, second: Evaluation, grader: str) -> list[ComparedSample]:
    befores, afters = _read_answers(first, grader), _read_answers(second, grader)
    samples = [
        ComparedSample(
            index=index,
            item=first.suite.items[index],
            first=befores[index],
            second=afters[index],
            first_score=befores[index].scores[grader],
            second_score=afters[index].scores[grader],
        )
        for index in sorted(befores.keys() & afters.keys())
    ]
    if not samples:
        raise UserError("The two evaluations have no answered sample in common.")
    return sorted(samples, key=lambda s: (("worse", "better", "same").index(s.change), s.index))


def _read_answers(evaluation: Evaluation, grader: str) -> dict[int, EvalResult]:
    results = evaluation.results.filter(error="")
    return {result.index: result for result in results if grader in result.scores}
