"""Each loss against its formula written out per token, value and gradient."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.engine.rows import make_data
from training.engine.core import Engine
from training.engine.losses import compute_loss
from training.types import ForwardBackward, ForwardBackwardOutput

# Ratios below, inside and above every default bound, with advantages of both signs and zero.
LEARNER = [-1.0, -2.0, -0.5, -3.0, -0.1, -2.5, -1.5, -0.7]
SAMPLER = [-1.1, -0.5, -2.5, -3.0, -0.15, -1.0, -1.5, -4.0]
ADVANTAGES = [1.0, -0.5, 2.0, -1.5, 0.0, 0.7, 0.3, -1.2]

Formula = Callable[[float, float, float], float]


def clamp(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))


def ppo_term(lp: float, q: float, a: float, low: float = 0.8, high: float = 1.2) -> float:
    r = math.exp(lp - q)
    return -min(r * a, clamp(r, low, high) * a)


def is_held(lp: float, q: float, a: float) -> bool:
    """Nothing holds a probability that moves back, or has moved by less than a fifth."""
    moved = math.exp(lp) - math.exp(q)
    return not (moved > 0.2 if a > 0 else moved < -0.2)


FORMULAS: dict[str, Formula] = {
    "importance_sampling": lambda lp, q, a: -math.exp(lp - q) * a,
    "ppo": ppo_term,
    "cispo": lambda lp, q, a: -clamp(math.exp(lp - q), 0.0, 4.0) * lp * a,
    "dro": lambda lp, q, a: -(lp * a - 0.5 * 0.05 * (lp - q) ** 2),
    "dapo": lambda lp, q, a: ppo_term(lp, q, a, 0.8, 1.28),
    "dppo": lambda lp, q, a: -math.exp(lp - q) * a * is_held(lp, q, a),
    "reinforce": lambda lp, q, a: -lp * a,
}


def tensors() -> dict[str, torch.Tensor]:
    return {"logprobs": torch.tensor(SAMPLER), "advantages": torch.tensor(ADVANTAGES)}


@pytest.mark.parametrize("loss_fn", FORMULAS)
def test_a_policy_loss_is_the_sum_of_its_formula(loss_fn: str) -> None:
    expected = sum(map(FORMULAS[loss_fn], LEARNER, SAMPLER, ADVANTAGES))
    loss = compute_loss(loss_fn, torch.tensor(LEARNER), tensors(), {})
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def ppo_slope(lp: float, q: float, a: float, high: float = 1.2) -> float:
    """Nothing where the clipped side is the smaller one."""
    r = math.exp(lp - q)
    return -r * a if r * a <= clamp(r, 0.8, high) * a else 0.0


SLOPES: dict[str, Formula] = {
    "importance_sampling": lambda lp, q, a: -math.exp(lp - q) * a,
    "ppo": ppo_slope,
    "cispo": lambda lp, q, a: -clamp(math.exp(lp - q), 0.0, 4.0) * a,
    "dro": lambda lp, q, a: -(a - 0.05 * (lp - q)),
    "dapo": lambda lp, q, a: ppo_slope(lp, q, a, 1.28),
    "dppo": lambda lp, q, a: -math.exp(lp - q) * a * is_held(lp, q, a),
    "reinforce": lambda lp, q, a: -a,
}


@pytest.mark.parametrize("loss_fn", SLOPES)
def test_a_policy_loss_has_the_gradient_of_its_formula(loss_fn: str) -> None:
    logprobs = torch.tensor(LEARNER, requires_grad=True)
    compute_loss(loss_fn, logprobs, tensors(), {}).backward()
    expected = torch.tensor(list(map(SLOPES[loss_fn], LEARNER, SAMPLER, ADVANTAGES)))
    torch.testing.assert_close(logprobs.grad, expected)


def test_config_moves_the_bounds_and_a_tensor_of_the_datum_comes_before_it() -> None:
    config = {"clip_low_threshold": 0.5, "clip_high_threshold": 3.0}
    loss = compute_loss("ppo", torch.tensor(LEARNER), tensors(), config)
    terms = [ppo_term(*each, 0.5, 3.0) for each in zip(LEARNER, SAMPLER, ADVANTAGES, strict=True)]
    assert loss.item() == pytest.approx(sum(terms), rel=1e-6)
    highs = [1.0 + i for i in range(8)]
    inputs = {**tensors(), "clip_high_threshold": torch.tensor(highs)}
    loss = compute_loss("ppo", torch.tensor(LEARNER), inputs, config)
    rows = zip(LEARNER, SAMPLER, ADVANTAGES, highs, strict=True)
    terms = [ppo_term(lp, q, a, 0.5, high) for lp, q, a, high in rows]
    assert loss.item() == pytest.approx(sum(terms), rel=1e-6)


def test_dro_takes_its_beta_from_the_config() -> None:
    loss = compute_loss("dro", torch.tensor(LEARNER), tensors(), {"beta": 2.0})
    rows = zip(LEARNER, SAMPLER, ADVANTAGES, strict=True)
    assert loss.item() == pytest.approx(
        sum(-(lp * a - (lp - q) ** 2) for lp, q, a in rows), rel=1e-6
    )


@pytest.mark.parametrize("loss_fn", FORMULAS)
def test_the_engine_sums_a_policy_loss_over_the_logprobs_it_returns(
    engine: Engine, loss_fn: str
) -> None:
    data = make_data(9, 16)
    output = run_request(engine, ForwardBackward(data=data, loss_fn=loss_fn))
    expected = sum(
        FORMULAS[loss_fn](float(lp), float(q), float(a))
        for datum, logprobs in zip(data, output.logprobs, strict=True)
        for lp, q, a in zip(
            logprobs, datum.inputs["logprobs"], datum.inputs["advantages"], strict=True
        )
    )
    assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-5)


def run_request(engine: Engine, request: ForwardBackward) -> ForwardBackwardOutput:
    output = engine.forward_backward({"run": request})["run"]
    assert isinstance(output, ForwardBackwardOutput)
    return output


def test_cross_entropy_honours_negative_weights_and_takes_missing_ones_as_ones(
    engine: Engine,
) -> None:
    datum = make_data(9)[0]
    weights = np.linspace(-1, 2, 9).astype(np.float32)
    signed = replace(datum, inputs={**datum.inputs, "weights": weights})
    output = run_request(engine, ForwardBackward(data=[signed]))
    expected = -float((output.logprobs[0] * weights).sum())
    assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-5)
    plain = replace(datum, inputs={"target_tokens": datum.inputs["target_tokens"]})
    output = run_request(engine, ForwardBackward(data=[plain]))
    assert output.metrics["loss:sum"] == pytest.approx(-float(output.logprobs[0].sum()), rel=1e-5)
    assert output.metrics["weights:sum"] == 9


def test_a_bound_that_only_one_datum_brings_leaves_its_neighbour_the_default(
    engine: Engine,
) -> None:
    plain, other = make_data(9, 9, seed=4)
    bounded = replace(
        other, inputs={**other.inputs, "clip_high_threshold": np.full(9, 1.2, np.float32)}
    )
    mixed = run_request(engine, ForwardBackward(data=[plain, bounded], loss_fn="ppo"))
    default = run_request(engine, ForwardBackward(data=[plain, other], loss_fn="ppo"))
    assert mixed.metrics["loss:sum"] == pytest.approx(default.metrics["loss:sum"], rel=1e-6)


def test_weights_of_zero_everywhere_give_no_loss_and_no_gradient(engine: Engine) -> None:
    datum = make_data(9)[0]
    silent = replace(datum, inputs={**datum.inputs, "weights": np.zeros(9, np.float32)})
    output = run_request(engine, ForwardBackward(data=[silent]))
    assert output.metrics["loss:sum"] == 0
    assert (output.logprobs[0] < 0).all()
    assert not engine.adapters.by_run["run"].gradients.any()


@pytest.mark.parametrize(
    ("q", "lp", "advantage", "is_pushed"),
    [
        (0.6, 0.9, 1.0, False),
        (0.6, 0.9, -1.0, True),
        (0.6, 0.3, 1.0, True),
        (0.6, 0.3, -1.0, False),
        (0.01, 0.1, 1.0, True),  # ten times as likely, and hardly moved
        (0.6, 0.9, 0.0, False),
    ],
)
def test_dppo_leaves_a_token_alone_that_has_moved_too_far_the_way_it_is_pushed(
    q: float, lp: float, advantage: float, *, is_pushed: bool
) -> None:
    logprobs = torch.tensor([math.log(lp)], requires_grad=True)
    inputs = {
        "logprobs": torch.tensor([math.log(q)]),
        "advantages": torch.tensor([advantage]),
    }
    compute_loss("dppo", logprobs, inputs, {}).backward()
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(-lp / q * advantage * is_pushed, rel=1e-5)


def test_dapo_lets_a_ratio_grow_further_than_ppo_does() -> None:
    logprobs = torch.tensor([math.log(0.25)], requires_grad=True)
    inputs = {"logprobs": torch.tensor([math.log(0.2)]), "advantages": torch.ones(1)}
    slopes: dict[str, float] = {}
    for loss_fn in ("ppo", "dapo"):
        logprobs.grad = None
        compute_loss(loss_fn, logprobs, inputs, {}).backward()
        assert logprobs.grad is not None
        slopes[loss_fn] = logprobs.grad.item()
    assert slopes == {"ppo": 0.0, "dapo": pytest.approx(-1.25)}
