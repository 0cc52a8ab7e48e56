"""Statistics of paired scores: the same items, answered by two models."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.stats import binomtest, bootstrap, norm, permutation_test

LEVEL = 0.95
RESAMPLES = 4999
SEED = 20_240_517  # fixed: the same scores give the same figures
REMEMBERED = 256  # results: the next page of a comparison asks for the same again
DIGITS = 9  # of a change
ROUNDING = 1e-13  # of a sum: in another order it differs by less
DRAWN_AT_ONCE = 1_000_000  # numbers: resampling takes no more memory than these need

Scores = tuple[float, ...]


def compute_p_value(wins: int, losses: int) -> float:
    """McNemar's exact test: two-sided, that wins and losses are equally likely."""
    if not wins + losses:
        return 1.0
    return float(binomtest(min(wins, losses), wins + losses, 0.5).pvalue)


def compare_means(changes: Sequence[float]) -> float:
    """Two-sided p-value that a change of either sign is equally likely, for parts of a point: the
    signs are flipped in every way, or in RESAMPLES drawn ones. What did not change tells nothing.
    """
    moved = np.array([change for change in changes if change])
    if moved.size < 2:
        return 1.0
    if 2**moved.size > RESAMPLES:
        return _draw_signs(moved)
    found = permutation_test((moved,), _mean, permutation_type="samples", vectorized=True)
    return float(found.pvalue)


def _draw_signs(moved: np.ndarray) -> float:
    """As permutation_test does with drawn signs, whose 5,000 orders of 1,000 items take a hundred
    times as long: a page compares seven pairs while somebody waits.
    """
    rng, num_bytes = np.random.default_rng(SEED), (moved.size + 7) // 8
    observed, sums = moved.sum(), []
    for count in _cut_draws(moved.size):
        drawn = rng.integers(0, 256, size=(count, num_bytes), dtype=np.uint8)
        signs = np.unpackbits(drawn, axis=1, count=moved.size)  # 1 stays, 0 turns
        sums.append(2 * (signs @ moved) - observed)
    others, room = np.concatenate(sums), np.abs(moved).sum() * ROUNDING
    as_low = np.count_nonzero(others <= observed + room) + 1
    as_high = np.count_nonzero(others >= observed - room) + 1
    return float(min(1.0, 2 * min(as_low, as_high) / (RESAMPLES + 1)))


def _cut_draws(size: int) -> list[int]:
    """RESAMPLES of them, as many at a time as the memory is for."""
    most = max(1, DRAWN_AT_ONCE // size)
    return [min(most, RESAMPLES - done) for done in range(0, RESAMPLES, most)]


@lru_cache(maxsize=REMEMBERED)
def compare_scores(first: Scores, second: Scores) -> float:
    """McNemar's exact test of scores that are 0 or 1, and a permutation test of others."""
    changes = subtract(first, second)
    if are_binary(first, second):
        wins, losses = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
        return compute_p_value(wins, losses)
    return compare_means(changes)


def subtract(first: Scores, second: Scores) -> list[float]:
    """Second minus first. Rounded, so that 0.2 - 0.1 and 0.3 - 0.2 are one change."""
    return [round(after - before, DIGITS) for before, after in zip(first, second, strict=True)]


def are_binary(*scores: Sequence[float]) -> bool:
    return all({*each} <= {0, 1} for each in scores)


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Holm 1979 (Scandinavian Journal of Statistics 6, 65-70): the smallest of m counts m times,
    the next m - 1 times, and none less than one before it. In the order that they came in.
    """
    count = len(p_values)
    adjusted = [0.0] * count
    largest = 0.0
    for rank, place in enumerate(sorted(range(count), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (count - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


@lru_cache(maxsize=REMEMBERED)
def estimate_interval(
    first: Scores, second: Scores, *, level: float = LEVEL
) -> tuple[float, float]:
    """Of the mean difference, second minus first."""
    if are_binary(first, second):
        return _newcombe_interval(first, second, level)
    return _bootstrap_interval(subtract(first, second), -1.0, level)


@lru_cache(maxsize=REMEMBERED)
def estimate_mean(scores: Scores, *, level: float = LEVEL) -> tuple[float, float]:
    """The interval of one mean: Wilson's of a share, else by bootstrap."""
    if are_binary(scores):
        return _wilson_interval(sum(scores) / len(scores), len(scores), level)
    return _bootstrap_interval(scores, 0.0, level)


def _newcombe_interval(
    first: Sequence[float], second: Sequence[float], level: float
) -> tuple[float, float]:
    """Newcombe 1998 (Statistics in Medicine 17, 2635-2650), method 10: Wilson's intervals of both
    shares, joined by their correlation. It keeps its coverage at 40 samples and at 0 or 100%.
    """
    count = len(first)
    pairs = list(zip(first, second, strict=True))
    both, neither = pairs.count((1, 1)), pairs.count((0, 0))
    only_first, only_second = pairs.count((1, 0)), pairs.count((0, 1))
    share_first, share_second = (both + only_first) / count, (both + only_second) / count
    low_first, high_first = _wilson_interval(share_first, count, level)
    low_second, high_second = _wilson_interval(share_second, count, level)
    phi = _correlate(both, only_first, only_second, neither)
    down = _join(share_second - low_second, high_first - share_first, phi)
    up = _join(high_second - share_second, share_first - low_first, phi)
    difference = share_second - share_first
    return max(-1.0, difference - down), min(1.0, difference + up)


def _wilson_interval(share: float, count: int, level: float) -> tuple[float, float]:
    z = float(norm.ppf((1 + level) / 2))
    middle = share + z**2 / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return (middle - spread) / (1 + z**2 / count), (middle + spread) / (1 + z**2 / count)


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


def _bootstrap_interval(
    values: Sequence[float], lowest: float, level: float
) -> tuple[float, float]:
    """Of the mean of values from `lowest` to 1, by resampled items (bias-corrected, accelerated).

    Equal values cannot be resampled into others. As many again may hold up to so large a share
    of others, each as far away as there is room for.
    """
    value = values[0]
    if all(each == value for each in values):
        share = 1 - ((1 - level) / 2) ** (1 / len(values))
        return value - share * (value - lowest), value + share * (1 - value)
    found = bootstrap(
        (np.array(values),),
        _mean,
        vectorized=True,
        confidence_level=level,
        n_resamples=RESAMPLES,
        batch=max(1, DRAWN_AT_ONCE // len(values)),
        rng=np.random.default_rng(SEED),
    )
    interval = found.confidence_interval
    return float(interval.low), float(interval.high)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    means: np.ndarray = values.mean(axis=axis)
    return means
