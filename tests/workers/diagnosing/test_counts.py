"""What is counted while a pass is on the device: advantages, repetition, a client's evaluations."""

from collections.abc import Sequence

import numpy as np
import pytest

from training.types import Datum, ForwardBackward, ForwardBackwardOutput
from workers.repeats import FORWARD_LOSS_KEY, MOST_SEEN, Passes
from workers.signal import (
    LENGTH_CORRELATION_KEY,
    LENGTH_KEY,
    REPEATED_KEY,
    ZERO_SHARE_KEY,
    Signal,
    correlate,
    measure_repeated,
)


def make_datum(advantage: float, length: int = 6, *, tokens: Sequence[int] = ()) -> Datum:
    """An answer of so many tokens behind a prompt of three, which has no advantage."""
    answer = list(tokens) or list(range(10, 10 + length))
    whole = [1, 2, 3, *answer]
    return Datum(
        tokens=np.array(whole[:-1]),
        inputs={
            "target_tokens": np.array(whole[1:]),
            "logprobs": np.zeros(len(whole) - 1, np.float32),
            "advantages": np.array([0, 0, *([advantage] * len(answer))], np.float32),
        },
    )


def count(*data: Datum, loss_fn: str = "importance_sampling") -> dict[str, float]:
    signal = Signal()
    signal.count(ForwardBackward(data=list(data), loss_fn=loss_fn))
    return dict(signal.describe())


def test_datums_without_any_advantage_are_a_share_of_all() -> None:
    told = count(make_datum(0.0), make_datum(0.0), make_datum(1.0, 5), make_datum(-1.0, 7))
    assert told[ZERO_SHARE_KEY] == 0.5
    assert told[LENGTH_KEY] == 6.0
    assert LENGTH_CORRELATION_KEY not in told  # of too few


def test_a_step_without_advantages_says_nothing() -> None:
    assert count(make_datum(1.0), loss_fn="cross_entropy") == {}


def test_a_step_of_constant_groups_alone_has_no_lengths() -> None:
    assert count(make_datum(0.0), make_datum(0.0)) == {ZERO_SHARE_KEY: 1.0}


@pytest.mark.parametrize(("sign", "correlation"), [(1.0, 1.0), (-1.0, -1.0)])
def test_length_goes_with_the_advantage_or_against_it(sign: float, correlation: float) -> None:
    told = count(*(make_datum(sign * (length - 9.5), length) for length in range(5, 15)))
    assert told[LENGTH_CORRELATION_KEY] == pytest.approx(correlation)


@pytest.mark.parametrize(
    ("lengths", "advantages"),
    [([5] * 9, [0.1 * k for k in range(9)]), (list(range(9)), [1.0] * 9), ([1, 2], [1.0, 2.0])],
)
def test_what_does_not_vary_has_no_correlation(lengths: list[int], advantages: list[float]) -> None:
    assert correlate(lengths, advantages) is None


def test_only_rewarded_answers_count_as_repetitive() -> None:
    assert count(make_datum(-1.0, tokens=[7] * 20))[ZERO_SHARE_KEY] == 0.0
    assert REPEATED_KEY not in count(make_datum(-1.0, tokens=[7] * 20))
    assert count(make_datum(1.0, tokens=[7] * 20))[REPEATED_KEY] == pytest.approx(16 / 17)
    assert count(make_datum(1.0, 20))[REPEATED_KEY] == 0.0


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([], 0.0), ([1, 2, 3, 4], 0.0), ([1, 2, 3, 4, 5], 0.0), ([1, 2, 1, 2, 1, 2], 1 / 3)],
)
def test_repetition_is_by_four_tokens(tokens: list[int], share: float) -> None:
    assert measure_repeated(np.array(tokens, np.int64)) == pytest.approx(share)


def pass_forward(passes: Passes, loss: float, *first: int, loss_fn: str = "cross_entropy") -> None:
    data = [
        Datum(tokens=np.array([token, 5]), inputs={"target_tokens": np.array([5, 6])})
        for token in first
    ]
    metrics = {"loss:sum": loss, "weights:sum": 2.0 * len(first)}
    output = ForwardBackwardOutput(logprobs=[], metrics=metrics)
    passes.count(ForwardBackward(data=data, loss_fn=loss_fn, forward_only=True), output)


def test_the_same_data_again_is_a_point_of_a_curve() -> None:
    passes = Passes()
    assert passes.take() == {}
    pass_forward(passes, 8.0, 1, 2)
    assert passes.take() == {}  # it may be anything
    pass_forward(passes, 6.0, 1, 2)
    assert passes.take() == {FORWARD_LOSS_KEY: 1.5}
    pass_forward(passes, 6.0, 1, 3)
    assert passes.take() == {}  # other data


def test_an_evaluation_in_two_requests_is_one_set() -> None:
    passes = Passes()
    for loss, expected in ((8.0, {}), (6.0, {FORWARD_LOSS_KEY: 3.0})):
        pass_forward(passes, loss, 1)
        pass_forward(passes, loss, 2)
        assert passes.take() == expected


def test_passes_of_other_losses_are_no_evaluation() -> None:
    passes = Passes()
    for _ in range(2):
        pass_forward(passes, 8.0, 1, loss_fn="ppo")
        assert passes.take() == {}


def test_sets_that_were_seen_are_not_kept_for_ever() -> None:
    passes = Passes()
    for token in range(MOST_SEEN + 10):
        pass_forward(passes, 8.0, token)
        passes.take()
    assert len(passes.seen) == MOST_SEEN
