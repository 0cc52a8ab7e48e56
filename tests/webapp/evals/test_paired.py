"""The paired statistics against tables that were computed by hand, and against how often they are
right."""

from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import permutation_test

from webapp.evals.paired import (
    adjust_holm,
    compare_means,
    compare_scores,
    compute_p_value,
    estimate_interval,
    estimate_mean,
)

# Ten items, right (1) or wrong (0), of which 6 changed: 5 for the better and 1 for the worse.
BEFORE = (0, 0, 0, 0, 0, 1, 1, 1, 0, 1)
AFTER = (1, 1, 1, 1, 1, 0, 1, 1, 0, 1)


def test_binary_scores_have_every_statistic_of_the_table() -> None:
    """By hand, with b = 5 wins, c = 1 loss, a = 3 both right, d = 1 both wrong:

    McNemar exact: 2 (C(6,0) + C(6,1)) / 2^6 = 2 * 7 / 64 = 0.21875.

    Newcombe's method 10, z = 1.959964, z^2 = 3.841459, n = 10:
    shares p1 = (3 + 1) / 10 = 0.4 and p2 = (3 + 5) / 10 = 0.8, difference 0.4.
    Wilson of 0.4: middle 0.4 + 3.841459 / 20 = 0.592073,
      spread 1.959964 sqrt(0.024 + 3.841459 / 400) = 1.959964 * 0.183313 = 0.359287,
      over 1.384146: 0.168180 to 0.687326.
    Wilson of 0.8: middle 0.992073, spread 1.959964 sqrt(0.016 + 0.009604) = 0.313615,
      over 1.384146: 0.490162 to 0.943318.
    phi: ad - bc = 3 * 1 - 1 * 5 = -2, not above 0, so no correction; margins 4 * 6 * 8 * 2 = 384,
      phi = -2 / 19.595918 = -0.102062.
    low: 0.4 - sqrt(dl2^2 - 2 phi dl2 du1 + du1^2), dl2 = 0.8 - 0.490162 = 0.309838 and
      du1 = 0.687326 - 0.4 = 0.287326: sqrt(0.096000 + 0.018172 + 0.082556) = 0.443541,
      low = -0.043541.
    high: 0.4 + sqrt(du2^2 - 2 phi du2 dl1 + dl1^2), du2 = 0.143318 and dl1 = 0.231820:
      sqrt(0.020540 + 0.006782 + 0.053741) = 0.284716, high = 0.684716.
    """
    assert compute_p_value(5, 1) == 0.21875
    assert compare_scores(BEFORE, AFTER) == 0.21875
    assert estimate_interval(BEFORE, AFTER) == pytest.approx((-0.043541, 0.684716), abs=2e-6)


def test_the_wilson_interval_of_one_share_is_that_of_the_table() -> None:
    assert estimate_mean(BEFORE) == pytest.approx((0.168180, 0.687326), abs=2e-6)
    assert estimate_mean((0, 0, 0)) == pytest.approx((0.0, 3.841459 / (3 + 3.841459)), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "p_value"),
    [
        # All 2^n ways to flip the signs, how many sums are at least as far from 0 (of both signs):
        ([0.5], Fraction(1)),  # 0.5 and -0.5
        ([0.5, 0.25], Fraction(1, 2)),  # 0.75 and -0.75 of 0.75, 0.25, -0.25, -0.75
        ([0.5, 0.25, -0.25], Fraction(3, 4)),  # the sum 0.5: of 1, .5, .5, 0, 0, -.5, -.5, -1: 6
        ([0.5, 0.25, 0.25, 0.5, 0.5], Fraction(2, 32)),  # all of one sign
        ([0.5, 0.0, 0.25, 0.0], Fraction(1, 2)),  # what did not change tells nothing
        # The sum 1: with 4 of one half, k minus signs give 2 - k; |2 - k| >= 1 at k = 0, 1, 3, 4.
        ([0.5, 0.5, 0.5, -0.5], Fraction(1 + 4 + 4 + 1, 16)),
    ],
)
def test_parts_of_a_point_are_tested_in_every_way_to_flip_the_signs(
    changes: list[float], p_value: Fraction
) -> None:
    assert compare_means(changes) == pytest.approx(float(p_value))
    assert compare_means([-change for change in changes]) == pytest.approx(float(p_value))


def test_many_items_are_tested_by_drawn_signs_the_same_every_time() -> None:
    changes = [0.5] * 30 + [-0.25] * 20
    p_value = compare_means(changes)
    assert 0 < p_value < 0.001
    assert compare_means(changes) == p_value


# Holm by hand: sorted 0.01, 0.02, 0.02, 0.04 times 4, 3, 2, 1 is 0.04, 0.06, 0.04, 0.04; none may
# be less than one before it, so equal p-values get equal ones.
@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.02, 0.01, 0.04, 0.02], [0.06, 0.04, 0.06, 0.06]),
        ([0.5, 0.5, 0.5], [1.0, 1.0, 1.0]),
        ([0.0, 1.0, 0.0], [0.0, 1.0, 0.0]),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holm_gives_the_table(p_values: list[float], adjusted: list[float]) -> None:
    assert adjust_holm(p_values) == pytest.approx(adjusted)


def draw_changes(seed: int, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scores in quarters: the second's mean is 0.0625 above the first's."""
    drawn = np.random.default_rng(seed)
    first = drawn.integers(0, 4, count) / 4
    second = first + drawn.choice([-0.25, 0.0, 0.25, 0.5], count, p=[0.25, 0.35, 0.3, 0.1])
    return tuple(first), tuple(second)


def test_the_bootstrap_interval_holds_the_true_difference_about_as_often_as_it_says() -> None:
    """The true mean change is -0.0625 + 0.075 + 0.05 = 0.0625. Of 200 draws of 40 items an interval
    that holds it 95 times in 100 misses 10; 20 or more have a chance of 3 in 1,000.
    """
    intervals = [estimate_interval(*draw_changes(seed, 40)) for seed in range(200)]
    num_missed = sum(not low <= 0.0625 <= high for low, high in intervals)
    assert 1 <= num_missed < 20


def test_a_p_value_below_a_twentieth_comes_once_in_twenty_where_there_is_no_difference() -> None:
    p_values = []
    for seed in range(200):
        drawn = np.random.default_rng(seed)
        p_values.append(compare_means(list(drawn.choice([-0.5, -0.25, 0.25, 0.5], 12))))
    assert sum(p_value < 0.05 for p_value in p_values) < 20


def test_a_wider_level_gives_a_wider_interval() -> None:
    for first, second in ((BEFORE, AFTER), draw_changes(1, 30)):
        narrow, wide = (estimate_interval(first, second, level=level) for level in (0.8, 0.99))
        assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_equal_parts_of_a_point_leave_room_for_items_that_were_not_asked() -> None:
    """All of 10 changed by 0; up to 1 - 0.025^(1/10) = 0.308497 of others may change, by 1."""
    low, high = estimate_interval((0.5,) * 10, (0.5,) * 10)
    assert (low, high) == pytest.approx((-0.308497, 0.308497), abs=1e-6)
    assert estimate_interval((0.5,) * 100, (0.5,) * 100)[1] == pytest.approx(0.036217, abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_odd_scores_give_numbers_and_no_warning(seed: int) -> None:
    drawn = np.random.default_rng(seed)
    count = int(drawn.integers(1, 6))
    first, second = (tuple(drawn.choice([0, 0.001, 0.5, 1], count)) for _ in range(2))
    low, high = estimate_interval(first, second)
    assert -1 <= low <= high <= 1
    assert 0 < compare_scores(first, second) <= 1


def test_changes_that_differ_in_their_last_digit_alone_are_equal_changes() -> None:
    found = estimate_interval((0.1, 0.2, 0.1, 0.2), (0.2, 0.3, 0.2, 0.3))
    assert found == estimate_interval((0.25, 0.25, 0.25, 0.25), (0.35, 0.35, 0.35, 0.35))
    low, high = found
    assert low < 0
    assert high > 0.1


@pytest.mark.parametrize(("shift", "size"), [(0.0, 40), (0.1, 40), (0.03, 400), (1.0, 60)])
def test_drawn_signs_say_what_scipys_own_test_says(shift: float, size: int) -> None:
    changes = np.random.default_rng(size).normal(shift, 0.3, size)
    expected = permutation_test(
        (changes,), np.mean, permutation_type="samples", n_resamples=4999, rng=7
    ).pvalue
    # Both are drawn: four standard errors of either, and never below one in five thousand.
    room = 4 * (2 * max(expected, 4e-4) * (1 - expected / 2) / 4999) ** 0.5
    assert compare_means(list(changes)) == pytest.approx(expected, abs=room)
    assert compare_means([-change for change in changes]) == pytest.approx(expected, abs=2 * room)
