"""When a run has stopped becoming better."""

import math

import pytest

from training.errors import InvalidInput
from training.recipes.early_stop import EarlyStop, check_early_stop, find_best, find_end

FALLING = [(10, 3.0), (20, 2.0), (30, 1.0)]


def test_what_still_falls_goes_on() -> None:
    assert find_end(FALLING, EarlyStop(patience=1)) is None


def test_it_ends_once_patience_measurements_were_no_better_than_the_best() -> None:
    rule = EarlyStop(patience=2)
    once = [*FALLING, (40, 1.5)]
    assert find_end(once, rule) is None
    end = find_end([*once, (50, 1.2)], rule)
    assert end is not None
    assert (end.step, end.value, end.num_since) == (30, 1.0, 2)


def test_an_equal_value_is_no_better() -> None:
    assert find_end([(10, 1.0), (20, 1.0)], EarlyStop(patience=1)) is not None


def test_a_gain_below_min_delta_does_not_count() -> None:
    points = [(10, 1.0), (20, 0.96), (30, 0.92)]
    assert find_end(points, EarlyStop(patience=2, min_delta=0.1)) is not None
    assert find_end(points, EarlyStop(patience=2, min_delta=0.01)) is None


def test_a_score_is_better_when_it_is_higher() -> None:
    rule = EarlyStop(metric="eval/words/exact_match", patience=1, higher_is_better=True)
    assert find_end([(10, 0.2), (20, 0.4)], rule) is None
    end = find_end([(10, 0.2), (20, 0.4), (30, 0.3)], rule)
    assert end is not None
    assert end.step == 20


def test_what_is_not_a_number_is_worse_than_everything() -> None:
    best = find_best([(10, math.nan), (20, 1.0), (30, math.nan), (40, math.inf)], EarlyStop())
    assert best is not None
    assert (best.step, best.num_since) == (20, 2)


def test_nothing_measured_ends_nothing() -> None:
    assert find_end([], EarlyStop(patience=1)) is None


def test_settings_are_checked_by_name() -> None:
    assert check_early_stop("early_stop", None) is None
    rule = check_early_stop("early_stop", {"metric": "held_out_loss", "patience": 5})
    assert rule == EarlyStop(patience=5)
    with pytest.raises(InvalidInput, match=r"early_stop\.patience is 0"):
        check_early_stop("early_stop", {"patience": 0})
    with pytest.raises(InvalidInput, match="no field 'patient'"):
        check_early_stop("early_stop", {"patient": 3})
    with pytest.raises(InvalidInput, match="not an object"):
        check_early_stop("early_stop", 3)
    with pytest.raises(InvalidInput, match=r"early_stop\.metric"):
        check_early_stop("early_stop", {"metric": ""})
