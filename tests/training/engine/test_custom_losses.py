"""Custom losses in the engine's passes: as autograd has them, and one run's mistake is its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from tests.training.engine.reference import load_peft, peft_parameters
from tests.training.engine.rows import make_data
from tests.training.engine.test_core import read_gradients, run_request
from tests.training.tracing import trace
from training.engine.core import Engine
from training.errors import InvalidInput
from training.graphs import MAX_CALLS, CustomLoss
from training.types import AdamParams, Datum, ForwardBackward, ForwardBackwardOutput, LoraSpec

Stir = Callable[[Engine, str], None]


def ppo_like(logprobs: Tensor, sampled: Tensor, advantages: Tensor, mask: Tensor) -> Any:
    """About 60 operations, of the kinds that people write."""
    count = torch.clamp(mask.sum(), min=1.0)
    mean = (advantages * mask).sum() / count
    spread = torch.sqrt((((advantages - mean) ** 2) * mask).sum() / count + 1e-8)
    normal = (advantages - mean) / spread
    gap = torch.clamp(logprobs - sampled, -5.0, 5.0)
    ratio = torch.exp(gap)
    clipped = torch.clamp(ratio, 0.8, 1.2)
    surrogate = torch.minimum(ratio * normal, clipped * normal)
    dual = torch.where(normal < 0, torch.maximum(surrogate, 3.0 * normal), surrogate)
    penalty = torch.exp(-gap) - 1 + gap
    sequence = torch.exp((gap.detach() * mask).sum() / count + logprobs - logprobs.detach())
    entropy = -(logprobs.exp() * logprobs)
    smooth = F.smooth_l1_loss(logprobs[1:], logprobs[:-1].detach(), reduction="none")
    token_loss = -(dual + 0.1 * torch.minimum(sequence * normal, sequence.clamp(0.9, 1.1) * normal))
    policy = (token_loss * mask).sum()
    kl = (penalty * mask).sum()
    bonus = (entropy * mask).sum()
    total = policy + 0.05 * kl - 0.01 * bonus + 0.02 * (smooth * mask[1:]).sum()
    was_clipped = ((ratio - clipped).abs() > 0).to(torch.float32)
    return total, {
        "custom/policy:sum": policy.detach(),
        "custom/kl:sum": kl.detach(),
        "custom/clipped:mean": (was_clipped * mask).sum() / count,
        "custom/ratio:mean": ((ratio * mask).sum() / count).detach(),
    }


def trace_ppo_like() -> CustomLoss:
    return trace(ppo_like, logprobs=1, sampled=1, advantages=1, mask=1)


def ask(data: list[Datum], loss: CustomLoss | None = None, **options: Any) -> ForwardBackward:
    options = {"loss_fn": "custom", "config": {"loss_id": "any"}, **options}
    return ForwardBackward(data=data, custom=loss or trace_ppo_like(), **options)


def make_rollouts(*lengths: int, vocab_size: int = 97) -> list[Datum]:
    """With the inputs of `ppo_like`: about a third of the positions is masked in."""
    rollouts: list[Datum] = []
    for datum in make_data(*lengths, vocab_size=vocab_size):
        inputs = {
            "target_tokens": datum.inputs["target_tokens"],
            "sampled": datum.inputs["logprobs"],
            "advantages": np.random.default_rng(len(rollouts)).normal(size=len(datum.tokens)),
            "mask": (datum.inputs["weights"] != 0).astype(np.float32),
        }
        inputs["advantages"] = inputs["advantages"].astype(np.float32)
        rollouts.append(Datum(tokens=datum.tokens, inputs=inputs))
    return rollouts


def differentiate(model: PeftModel, data: list[Datum]) -> tuple[Tensor, dict[str, float]]:
    """By plain autograd through the whole model, one sequence at a time: nothing of ours."""
    total, metrics = torch.zeros(()), dict[str, float]()
    for datum in data:
        logits = model(input_ids=torch.from_numpy(datum.tokens)[None]).logits[0]
        targets = torch.from_numpy(datum.inputs["target_tokens"])
        logprobs = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
        names = ("sampled", "advantages", "mask")
        loss, own = ppo_like(logprobs, *(torch.from_numpy(datum.inputs[name]) for name in names))
        total = total + loss
        for key, value in own.items():
            share = 1 / len(data) if key.endswith(":mean") else 1
            metrics[key] = metrics.get(key, 0.0) + value.item() * share
    return total, metrics


def test_a_loss_of_sixty_operations_trains_as_autograd_does(
    random_paths: dict[str, Path], stir: Stir, tmp_path: Path
) -> None:
    loss = trace_ppo_like()
    assert len(loss.nodes) >= 60
    engine = Engine.load(random_paths["llama"])
    engine.create_adapter("run", LoraSpec(rank=4, seed=1))
    stir(engine, "run")
    engine.save_weights("run", tmp_path / "saved", optimizer=False)
    data = make_rollouts(6, 11, 25, 11)
    engine.token_budget = 30  # several passes
    output = run_request(engine, ask(data, loss))
    model = load_peft(random_paths["llama"], tmp_path / "saved")
    total, metrics = differentiate(model, data)
    total.backward()
    assert output.metrics["loss:sum"] == pytest.approx(total.item(), rel=1e-5)
    own = {key: value for key, value in output.metrics.items() if key.startswith("custom/")}
    assert own == pytest.approx(metrics, rel=1e-4)
    theirs, adapter = peft_parameters(model), engine.adapters.by_run["run"]
    for name, gradient in adapter.view(adapter.gradients).items():
        torch.testing.assert_close(gradient, theirs[name].grad, atol=1e-5, rtol=1e-4)
    assert engine.optim_step("run", AdamParams(learning_rate=1e-2)).metrics["grad_norm"] > 0


def test_a_traced_cross_entropy_is_the_cross_entropy_of_the_engine(
    engine: Engine, stir: Stir
) -> None:
    def cross_entropy(logprobs: Tensor, weights: Tensor) -> Any:
        loss = -(logprobs * weights).sum()
        return loss, {"custom/share:mean": weights.mean()}

    stir(engine, "run")
    data = make_data(6, 11, 25)
    expected = run_request(engine, ForwardBackward(data=data))
    gradients = read_gradients(engine)
    engine.drop_gradients("run")
    loss = trace(cross_entropy, logprobs=1, weights=1)
    output = run_request(engine, ask(data, loss))
    torch.testing.assert_close(read_gradients(engine), gradients, atol=1e-6, rtol=1e-5)
    assert output.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-6)
    share = np.mean([datum.inputs["weights"].mean() for datum in data])
    assert output.metrics["custom/share:mean"] == pytest.approx(share, rel=1e-6)
    for left, right in zip(output.logprobs, expected.logprobs, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_forward_only_tells_the_same_and_leaves_gradients_alone(engine: Engine) -> None:
    data = make_rollouts(6, 11)
    told = run_request(engine, ask(data, forward_only=True))
    assert not engine.has_gradients("run")
    assert not read_gradients(engine).any()
    assert told.metrics == pytest.approx(run_request(engine, ask(data)).metrics, rel=1e-6)


def break_late(logprobs: Tensor, mask: Tensor) -> Any:
    """Only a sequence of 7 positions has no eighth."""
    return (logprobs * mask)[[7, 0]].sum(), {}


@pytest.mark.parametrize("token_budget", [20, 4096])
def test_a_loss_that_breaks_is_its_own_runs_and_leaves_no_gradient(
    engine: Engine, token_budget: int
) -> None:
    engine.create_adapter("other", LoraSpec(rank=2))
    engine.token_budget = token_budget
    data = make_rollouts(8, 12)
    expected = run_request(engine, ask(data)).metrics
    gradients = read_gradients(engine)
    engine.drop_gradients("run")
    run_request(engine, ask(make_rollouts(9)), "other")
    before = read_gradients(engine, "other")
    broken = ask(
        [*make_rollouts(20, 9, 11), *make_rollouts(7)], trace(break_late, logprobs=1, mask=1)
    )
    outputs = engine.forward_backward({"other": broken, "run": ask(data)})
    assert isinstance(outputs["other"], InvalidInput)
    assert str(outputs["other"]).startswith("datum 3: custom loss traced: node getitem (operator.")
    assert torch.equal(read_gradients(engine, "other"), before)
    assert isinstance(outputs["run"], ForwardBackwardOutput)
    assert outputs["run"].metrics == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(read_gradients(engine), gradients, atol=1e-5, rtol=1e-5)


def test_a_first_request_that_breaks_leaves_a_run_without_gradients(engine: Engine) -> None:
    broken = ask(make_rollouts(20, 7), trace(break_late, logprobs=1, mask=1))
    assert isinstance(engine.forward_backward({"run": broken})["run"], InvalidInput)
    assert not engine.has_gradients("run")
    assert not read_gradients(engine).any()


def distil(logprobs: Tensor, target_distribution: Tensor) -> Any:
    cross = -(target_distribution * logprobs).sum()
    return cross, {"custom/best:mean": logprobs.max(dim=-1).values.mean()}


def make_candidates(length: int, num_targets: int) -> Datum:
    random = np.random.default_rng(length)
    tokens = random.integers(0, 97, (length, num_targets + 1))
    weights = random.dirichlet(np.ones(num_targets), length).astype(np.float32)
    inputs: dict[str, Any] = {"target_tokens": tokens[:, 1:]}
    inputs |= {"target_distribution": weights, "weights": weights}
    return Datum(tokens=tokens[:, 0], inputs=inputs)


def test_several_targets_a_position_are_two_dimensions_of_logprobs(
    engine: Engine, stir: Stir
) -> None:
    """Some with one column, which is a dimension too, in passes with a run that has none."""
    stir(engine, "run")
    engine.create_adapter("other", LoraSpec(rank=2))
    data = [make_candidates(9, 3), make_candidates(5, 1), make_candidates(7, 3)]
    expected = run_request(engine, ForwardBackward(data=data))
    gradients = read_gradients(engine)
    engine.drop_gradients("run")
    request = ask(data, trace(distil, logprobs=2, target_distribution=2))
    outputs = engine.forward_backward({"run": request, "other": ask(make_rollouts(8))})
    output = outputs["run"]
    assert isinstance(output, ForwardBackwardOutput)
    assert isinstance(outputs["other"], ForwardBackwardOutput)
    torch.testing.assert_close(read_gradients(engine), gradients, atol=1e-5, rtol=1e-5)
    assert output.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-5)
    best = np.mean([logprobs.max(axis=1).mean() for logprobs in expected.logprobs])
    assert output.metrics["custom/best:mean"] == pytest.approx(best, rel=1e-5)


def test_a_rank_that_the_targets_do_not_have_is_named(engine: Engine) -> None:
    loss = trace(distil, logprobs=2, target_distribution=2)
    request = ask([make_candidates(9, 3), *make_data(5)], loss)
    assert "datum 1: target_tokens has the shape (5,)" in refuse(engine, request)


def refuse(engine: Engine, request: ForwardBackward) -> str:
    outcome = engine.forward_backward({"run": request})["run"]
    assert isinstance(outcome, InvalidInput)
    return str(outcome)


def test_a_datum_without_an_input_is_named(engine: Engine) -> None:
    data = make_rollouts(6, 11)
    missing = {key: value for key, value in data[1].inputs.items() if key != "mask"}
    request = ask([data[0], replace(data[1], inputs=missing)])
    assert "datum 1: mask is missing: the custom loss traced reads it" in refuse(engine, request)


def test_an_input_of_another_rank_is_named(engine: Engine) -> None:
    (datum,) = make_rollouts(6)
    for wrong in (datum.inputs["mask"][:, None], np.ones((), np.float32)):
        request = ask([replace(datum, inputs={**datum.inputs, "mask": wrong})])
        said = refuse(engine, request)
        assert f"datum 0: mask has the shape {wrong.shape}" in said
        assert "declared mask with rank 1" in said


def test_a_custom_loss_needs_to_be_named_and_takes_nothing_else(engine: Engine) -> None:
    request = ForwardBackward(data=make_data(5), loss_fn="custom")
    assert "config 'loss_id' is missing" in refuse(engine, request)
    assert "config 'beta'" in refuse(engine, ask(make_rollouts(5), config={"beta": 1.0}))


def test_more_calls_than_a_request_may_make_are_refused_before_any(engine: Engine) -> None:
    loss = trace_ppo_like()
    most = MAX_CALLS // len(loss.nodes)
    said = refuse(engine, ask(make_rollouts(1) * (most + 1), loss))
    assert f"send at most {most} datums in one request" in said
