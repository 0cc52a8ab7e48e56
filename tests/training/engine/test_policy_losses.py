"""gspo and stable_reinforce by hand, ratios that overflow, and what is told of a policy."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.engine.rows import make_data, make_datum
from tests.training.engine.test_losses import (
    ADVANTAGES,
    LEARNER,
    SAMPLER,
    clamp,
    run_request,
    tensors,
)
from training.engine.core import Engine
from training.engine.losses import compute_loss
from training.errors import InvalidInput
from training.requests import PULL_LIMIT, TRUNCATION, check_request
from training.types import Datum, ForwardBackward

MASK = [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]
POLICY = (
    *("importance_sampling", "ppo", "cispo", "gspo", "stable_reinforce"),
    *("dapo", "dppo", "reinforce"),
)


def mask_of(values: list[float]) -> dict[str, torch.Tensor]:
    return {**tensors(), "sequence_ratio_mask": torch.tensor(values)}


def read_slopes(loss_fn: str, inputs: dict[str, torch.Tensor], **config: float) -> torch.Tensor:
    logprobs = torch.tensor(LEARNER, requires_grad=True)
    compute_loss(loss_fn, logprobs, inputs, config).backward()
    assert logprobs.grad is not None
    return logprobs.grad


@pytest.mark.parametrize("bounds", [(0.8, 1.2), (0.1, 9.0), (2.0, 3.0)])
def test_gspo_is_its_formula_with_one_ratio_and_own_gradients(bounds: tuple[float, float]) -> None:
    low, high = bounds
    config = {"clip_low_threshold": low, "clip_high_threshold": high}
    logs = [lp - q for lp, q, on in zip(LEARNER, SAMPLER, MASK, strict=True) if on]
    s = math.exp(sum(logs) / len(logs))
    terms = [-min(s * a, clamp(s, low, high) * a) for a in ADVANTAGES]
    loss = compute_loss("gspo", torch.tensor(LEARNER), mask_of(MASK), config)
    assert loss.item() == pytest.approx(sum(terms), rel=1e-5)
    slopes = [-s * a if s * a <= clamp(s, low, high) * a else 0.0 for a in ADVANTAGES]
    torch.testing.assert_close(read_slopes("gspo", mask_of(MASK), **config), torch.tensor(slopes))


def test_gspo_takes_the_bounds_of_a_token_before_those_of_the_config() -> None:
    highs = torch.linspace(0.5, 4.0, 8)
    inputs = {**mask_of(MASK), "clip_high_threshold": highs}
    logs = [lp - q for lp, q, on in zip(LEARNER, SAMPLER, MASK, strict=True) if on]
    s = math.exp(sum(logs) / len(logs))
    terms = [
        -min(s * a, clamp(s, 0.0, high) * a)
        for a, high in zip(ADVANTAGES, highs.tolist(), strict=True)
    ]
    config = {"clip_low_threshold": 0.0, "clip_high_threshold": 0.1}
    loss = compute_loss("gspo", torch.tensor(LEARNER), inputs, config)
    assert loss.item() == pytest.approx(sum(terms), rel=1e-5)


def add_mask(datum: Datum, mask: np.ndarray) -> Datum:
    return replace(datum, inputs={**datum.inputs, "sequence_ratio_mask": mask.astype(np.float32)})


def test_the_engine_takes_the_ratio_of_each_datum_by_itself(engine: Engine) -> None:
    """Positions in the mask without an advantage count in the mean."""
    data = [add_mask(datum, np.arange(len(datum.tokens)) % 3 != 0) for datum in make_data(12, 20)]
    config = {"clip_low_threshold": 0.0, "clip_high_threshold": 1e9}
    output = run_request(engine, ForwardBackward(data=data, loss_fn="gspo", config=config))
    expected = 0.0
    for datum, logprobs in zip(data, output.logprobs, strict=True):
        marked = datum.inputs["sequence_ratio_mask"] != 0
        ratio = np.exp((logprobs - datum.inputs["logprobs"])[marked].mean())
        expected -= float((ratio * datum.inputs["advantages"]).sum())
    assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-4)


def test_a_mask_of_zeros_is_refused_unless_there_are_no_advantages() -> None:
    datum = add_mask(make_datum(6), np.zeros(6))
    request = ForwardBackward(data=[make_masked(), datum], loss_fn="gspo")
    with pytest.raises(InvalidInput, match="datum 1: sequence_ratio_mask is 0 everywhere"):
        check_request(request, vocab_size=97, context=64)
    idle = replace(datum, inputs={**datum.inputs, "advantages": np.zeros(6, np.float32)})
    check_request(ForwardBackward(data=[idle], loss_fn="gspo"), vocab_size=97, context=64)


def make_masked() -> Datum:
    return add_mask(make_datum(6), np.ones(6))


def stable_slope(lp: float, q: float, a: float, kl_coeff: float) -> float:
    if a == 0:
        return 0.0
    weight = min(math.exp(lp - q), TRUNCATION)
    return -weight * a + kl_coeff * clamp(lp - q, -PULL_LIMIT, PULL_LIMIT)


@pytest.mark.parametrize("kl_coeff", [0.0, 0.05, 2.0])
def test_stable_reinforce_has_the_gradient_of_its_page(kl_coeff: float) -> None:
    rows = zip(LEARNER, SAMPLER, ADVANTAGES, strict=True)
    expected = torch.tensor([stable_slope(*row, kl_coeff) for row in rows])
    slopes = read_slopes("stable_reinforce", tensors(), kl_coeff=kl_coeff)
    torch.testing.assert_close(slopes, expected)
    if kl_coeff == 0.05:
        torch.testing.assert_close(read_slopes("stable_reinforce", tensors()), expected)


def test_stable_reinforce_has_the_value_of_its_page() -> None:
    expected = 0.0
    for lp, q, a in zip(LEARNER, SAMPLER, ADVANTAGES, strict=True):
        off = abs(lp - q)
        pull = 0.5 * off**2 if off <= PULL_LIMIT else PULL_LIMIT * (off - 0.5 * PULL_LIMIT)
        expected += (0.05 * pull if a else 0.0) - min(math.exp(lp - q), TRUNCATION) * a
    loss = compute_loss("stable_reinforce", torch.tensor(LEARNER), tensors(), {})
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def read_gradients(engine: Engine) -> torch.Tensor:
    adapter = engine.adapters.by_run["run"]
    gradients = adapter.gradients.clone()
    adapter.drop_gradients()
    return gradients


def put_logprobs(data: list[Datum], logprobs: list[np.ndarray]) -> list[Datum]:
    return [
        replace(datum, inputs={**datum.inputs, "logprobs": values})
        for datum, values in zip(data, logprobs, strict=True)
    ]


def test_on_policy_stable_reinforce_is_importance_sampling(engine: Engine) -> None:
    data = make_data(12, 20)
    told = run_request(engine, ForwardBackward(data=data, forward_only=True))
    data = put_logprobs(data, list(told.logprobs))
    losses, gradients = [], []
    for loss_fn in ("importance_sampling", "stable_reinforce"):
        output = run_request(engine, ForwardBackward(data=data, loss_fn=loss_fn))
        losses.append(output.metrics["loss:sum"])
        gradients.append(read_gradients(engine))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


def test_where_importance_sampling_explodes_stable_reinforce_stays_bounded(
    engine: Engine,
) -> None:
    """The gradient's norm grows with the ratio for the one, and not at all for the other."""
    data = make_data(12, 20)
    told = run_request(engine, ForwardBackward(data=data, forward_only=True)).logprobs
    norms: dict[str, list[float]] = {"importance_sampling": [], "stable_reinforce": []}
    for lag in (1.0, 5.0, 20.0, 60.0):
        lagged = put_logprobs(data, [values - lag for values in told])
        for loss_fn, found in norms.items():
            run_request(engine, ForwardBackward(data=lagged, loss_fn=loss_fn))
            found.append(float(torch.linalg.vector_norm(read_gradients(engine))))
    free, bounded = norms["importance_sampling"], norms["stable_reinforce"]
    assert free[2] > 1e6 * free[0]
    assert bounded == pytest.approx([bounded[0]] * 4, rel=1e-3)


@pytest.mark.parametrize("loss_fn", POLICY)
def test_positions_without_advantage_never_make_a_gradient_nan(loss_fn: str) -> None:
    """A prompt has no advantage, and its q may be anything."""
    inputs = {
        "logprobs": torch.tensor([-1000.0, 0.0, -1.0]),
        "advantages": torch.tensor([0.0, 0.0, 1.0]),
        "sequence_ratio_mask": torch.tensor([0.0, 0.0, 1.0]),
    }
    logprobs = torch.tensor([-1.0, -2.0, -1.0], requires_grad=True)
    compute_loss(loss_fn, logprobs, inputs, {}).backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, 0.0, -1.0]))


@pytest.mark.parametrize("loss_fn", ["ppo", "cispo", "gspo", "stable_reinforce"])
def test_a_ratio_that_overflows_behind_its_bound_has_a_finite_gradient(loss_fn: str) -> None:
    inputs = {
        "logprobs": torch.tensor([-1000.0]),
        "advantages": torch.tensor([1.0]),
        "sequence_ratio_mask": torch.tensor([1.0]),
    }
    logprobs = torch.tensor([-1.0], requires_grad=True)
    compute_loss(loss_fn, logprobs, inputs, {}).backward()
    assert logprobs.grad is not None
    expected = {"ppo": 0.0, "gspo": 0.0, "cispo": -4.0, "stable_reinforce": -2.0 + 0.05}
    assert logprobs.grad.item() == pytest.approx(expected[loss_fn])


@pytest.mark.parametrize(
    ("loss_fn", "config", "text"),
    [
        ("stable_reinforce", {"kl_coeff": -0.1}, "'kl_coeff' is -0.1: send a number of 0 or more"),
        ("stable_reinforce", {"beta": 0.1}, "config 'beta': stable_reinforce knows kl_coeff"),
        ("gspo", {"epsilon": 0.2}, "knows clip_high_threshold, clip_low_threshold"),
        ("gspo", {"clip_low_threshold": 1.5}, "'clip_low_threshold' is 1.5, above the high one"),
        ("ppo", {"temperature": 0.0}, "'temperature' is 0.0: send a number above 0 and up to 1000"),
        ("ppo", {"temperature": math.inf}, "'temperature' is inf: send a number above 0"),
        ("cross_entropy", {"temperature": 0.5}, "'temperature': cross_entropy knows no keys"),
    ],
)
def test_settings_that_a_loss_cannot_have_are_refused_by_name(
    loss_fn: str, config: dict[str, float], text: str
) -> None:
    request = ForwardBackward(data=[make_masked()], loss_fn=loss_fn, config=config)
    with pytest.raises(InvalidInput, match=text):
        check_request(request, vocab_size=97, context=64)


def test_stable_reinforce_trains_sampled_tokens_only_where_spans_tell() -> None:
    sampled = make_datum(6).inputs["advantages"] != 0
    datum = replace(make_datum(6), sampled=sampled)
    good = ForwardBackward(data=[datum], loss_fn="stable_reinforce")
    check_request(good, vocab_size=97, context=64)
    bad = replace(good, data=[datum, replace(datum, sampled=~sampled)])
    with pytest.raises(InvalidInput, match=r"datum 1: advantages: .* loss_fn_input_spans"):
        check_request(bad, vocab_size=97, context=64)
    check_request(replace(bad, loss_fn="ppo"), vocab_size=97, context=64)


def test_a_policy_loss_tells_how_far_the_policies_are_apart(engine: Engine) -> None:
    data = make_data(12, 20)
    output = run_request(engine, ForwardBackward(data=data, loss_fn="ppo"))
    on = np.concatenate([datum.inputs["advantages"] for datum in data]) != 0
    logs = np.concatenate(output.logprobs)[on]
    logs -= np.concatenate([datum.inputs["logprobs"] for datum in data])[on]
    advantages = np.concatenate([datum.inputs["advantages"] for datum in data])[on]
    ratios = np.exp(logs)
    cut = np.clip(ratios, 0.8, 1.2) * advantages < ratios * advantages
    metrics = output.metrics
    assert metrics["ratio:mean"] == pytest.approx(ratios.mean(), rel=1e-4)
    assert metrics["kl_sample_train_k1:mean"] == pytest.approx(-logs.mean(), rel=1e-4)
    assert metrics["kl_sample_train_k3:mean"] == pytest.approx((ratios - 1 - logs).mean(), rel=1e-4)
    assert metrics["clipped:mean"] == pytest.approx(cut.mean())


def test_what_is_not_finite_or_not_of_a_policy_is_not_told(engine: Engine) -> None:
    data = make_data(12)
    assert "ratio:mean" not in run_request(engine, ForwardBackward(data=data)).metrics
    far = put_logprobs(data, [np.full(12, -1000, np.float32)])
    metrics = run_request(engine, ForwardBackward(data=far, loss_fn="ppo")).metrics
    assert "ratio:mean" not in metrics
    assert metrics["kl_sample_train_k1:mean"] < -900
    idle = replace(data[0], inputs={**data[0].inputs, "advantages": np.zeros(12, np.float32)})
    metrics = run_request(engine, ForwardBackward(data=[idle], loss_fn="ppo")).metrics
    assert "kl_sample_train_k1:mean" not in metrics
