"""Passes and steps: packing changes nothing, runs do not touch each other, refusals are clean."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.engine.rows import make_data, make_datum
from training.engine.core import Engine
from training.errors import InvalidInput
from training.types import AdamParams, Datum, ForwardBackward, ForwardBackwardOutput, LoraSpec

Stir = Callable[[Engine, str], None]
ADAM = AdamParams(learning_rate=1e-2)


def run_request(
    engine: Engine, request: ForwardBackward, run: str = "run"
) -> ForwardBackwardOutput:
    output = engine.forward_backward({run: request})[run]
    assert isinstance(output, ForwardBackwardOutput)
    return output


def read_gradients(engine: Engine, run: str = "run") -> torch.Tensor:
    return engine.adapters.by_run[run].gradients.clone()


def read_values(engine: Engine, run: str = "run") -> torch.Tensor:
    return engine.adapters.by_run[run].values.clone()


def test_one_piece_or_four_give_the_same_gradient(engine: Engine, stir: Stir) -> None:
    stir(engine, "run")
    data = make_data(6, 11, 11, 25)
    whole = run_request(engine, ForwardBackward(data=data))
    expected = read_gradients(engine)
    engine.adapters.by_run["run"].drop_gradients()
    pieces = [run_request(engine, ForwardBackward(data=[datum])) for datum in data]
    torch.testing.assert_close(read_gradients(engine), expected, atol=1e-5, rtol=1e-5)
    losses = [piece.metrics["loss:sum"] for piece in pieces]
    assert sum(losses) == pytest.approx(whole.metrics["loss:sum"], rel=1e-5)


def test_a_small_token_budget_gives_the_same_result(engine: Engine, stir: Stir) -> None:
    stir(engine, "run")
    request = ForwardBackward(data=make_data(30, 6, 11, 25, 11))
    whole = run_request(engine, request)
    expected = read_gradients(engine)
    engine.adapters.by_run["run"].drop_gradients()
    engine.token_budget = 20
    split = run_request(engine, request)
    torch.testing.assert_close(read_gradients(engine), expected, atol=1e-5, rtol=1e-5)
    for left, right in zip(split.logprobs, whole.logprobs, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_runs_of_different_specs_together_are_the_same_as_apart(
    random_paths: dict[str, Path], stir: Stir
) -> None:
    engine = Engine.load(random_paths["qwen3"])
    specs = {
        "a": LoraSpec(rank=4, train_unembed=True),
        "bb": LoraSpec(rank=8, alpha=4.0, train_mlp=False),
        "ccc": LoraSpec(rank=2, seed=5),
    }
    requests = {
        "a": ForwardBackward(data=make_data(9, 20, seed=1)),
        "bb": ForwardBackward(data=make_data(20, 31, seed=2), loss_fn="importance_sampling"),
        "ccc": ForwardBackward(data=make_data(7, seed=3), loss_fn="ppo"),
    }
    for run, spec in specs.items():
        engine.create_adapter(run, spec)
        stir(engine, run)
    apart = {run: run_request(engine, request, run) for run, request in requests.items()}
    gradients = {run: read_gradients(engine, run) for run in specs}
    for run in specs:
        engine.adapters.by_run[run].drop_gradients()
    together = engine.forward_backward(requests)
    for run in specs:
        torch.testing.assert_close(
            read_gradients(engine, run), gradients[run], atol=1e-5, rtol=1e-5
        )
        output = together[run]
        assert isinstance(output, ForwardBackwardOutput)
        assert output.metrics == pytest.approx(apart[run].metrics, rel=1e-5)


def test_a_bad_request_does_not_spoil_the_others(engine: Engine) -> None:
    engine.create_adapter("other", LoraSpec(rank=2))
    good = ForwardBackward(data=make_data(8, 12))
    alone = run_request(engine, good)
    outputs = engine.forward_backward(
        {"other": ForwardBackward(data=[]), "run": good, "unknown": good}
    )
    assert isinstance(outputs["other"], InvalidInput)
    assert not engine.has_gradients("other")
    assert "has no weights here" in str(outputs["unknown"])
    assert outputs["run"].metrics == alone.metrics  # type: ignore[union-attr]


def test_not_finite_gradients_of_one_run_stay_with_it(engine: Engine) -> None:
    engine.create_adapter("other", LoraSpec(rank=2))
    data = make_data(8, 12)
    alone = run_request(engine, ForwardBackward(data=data))
    expected = read_gradients(engine)
    engine.adapters.by_run["run"].drop_gradients()
    engine.forward_backward(
        {
            "other": ForwardBackward(data=[explode(data[0])], loss_fn="importance_sampling"),
            "run": ForwardBackward(data=data),
        }
    )
    assert alone.metrics["loss:sum"] > 0
    assert not bool(read_gradients(engine, "other").isfinite().all())
    torch.testing.assert_close(read_gradients(engine), expected, atol=1e-5, rtol=1e-5)


def explode(datum: Datum) -> Datum:
    """The ratio to a sampler that claims exp(-1000) overflows."""
    inputs = {**datum.inputs, "logprobs": np.full(len(datum.tokens), -1000, np.float32)}
    return replace(datum, inputs=inputs)


def test_a_step_on_gradients_that_are_not_finite_is_refused_and_changes_nothing(
    engine: Engine,
) -> None:
    run_request(engine, ForwardBackward(data=make_data(8)))
    engine.optim_step("run", ADAM)
    values, steps = read_values(engine), engine.optimizers["run"].num_steps
    moments = engine.optimizers["run"].mean.clone()
    bad = ForwardBackward(data=[explode(make_datum(8))], loss_fn="importance_sampling")
    run_request(engine, bad)
    with pytest.raises(InvalidInput, match="not finite: the step was refused"):
        engine.optim_step("run", ADAM)
    assert torch.equal(read_values(engine), values)
    assert torch.equal(engine.optimizers["run"].mean, moments)
    assert engine.optimizers["run"].num_steps == steps
    assert not engine.has_gradients("run")
    run_request(engine, ForwardBackward(data=make_data(8)))
    assert engine.optim_step("run", ADAM).metrics["grad_norm"] > 0


def test_forward_only_tells_the_same_and_leaves_gradients_alone(engine: Engine) -> None:
    data = make_data(8, 14)
    trained = run_request(engine, ForwardBackward(data=data))
    gradients = read_gradients(engine)
    told = run_request(engine, ForwardBackward(data=data, forward_only=True))
    assert torch.equal(read_gradients(engine), gradients)
    assert told.metrics == pytest.approx(trained.metrics, rel=1e-6)
    for left, right in zip(told.logprobs, trained.logprobs, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_forward_only_before_any_training_leaves_no_gradients(engine: Engine) -> None:
    run_request(engine, ForwardBackward(data=make_data(8), forward_only=True))
    assert not engine.has_gradients("run")
    assert not read_gradients(engine).any()


def test_gradients_are_summed_until_a_step_uses_them_up(engine: Engine) -> None:
    request = ForwardBackward(data=make_data(8))
    run_request(engine, request)
    once = read_gradients(engine)
    run_request(engine, request)
    torch.testing.assert_close(read_gradients(engine), 2 * once)
    engine.optim_step("run", ADAM)
    assert not read_gradients(engine).any()
    assert not engine.has_gradients("run")


def test_the_same_requests_give_the_same_bits(random_paths: dict[str, Path]) -> None:
    results = []
    for _ in range(2):
        engine = Engine.load(random_paths["llama"])
        engine.create_adapter("run", LoraSpec(rank=4, seed=7))
        for seed in range(3):
            run_request(engine, ForwardBackward(data=make_data(8, 19, 19, seed=seed)))
            engine.optim_step("run", ADAM)
        results.append(read_values(engine))
    assert torch.equal(*results)


def test_training_lowers_the_loss(tiny_path: Path) -> None:
    engine = Engine.load(tiny_path)
    engine.create_adapter("run", LoraSpec(rank=8))
    request = ForwardBackward(data=make_data(24, 24, vocab_size=engine.vocab_size))
    losses = []
    for _ in range(12):
        losses.append(run_request(engine, request).metrics["loss:sum"])
        engine.optim_step("run", ADAM)
    assert losses[-1] < 0.5 * losses[0]


def test_weighted_logprobs_are_zero_where_nothing_is_weighted_and_train_the_same(
    engine: Engine,
) -> None:
    data = make_data(20, 9)
    full = run_request(engine, ForwardBackward(data=data))
    gradients = read_gradients(engine)
    engine.adapters.by_run["run"].drop_gradients()
    sparse = run_request(engine, ForwardBackward(data=data, config={"logprobs": "weighted"}))
    assert sparse.metrics == full.metrics
    assert torch.equal(read_gradients(engine), gradients)
    for datum, left, right in zip(data, sparse.logprobs, full.logprobs, strict=True):
        np.testing.assert_array_equal(left, np.where(datum.inputs["weights"] != 0, right, 0))


def test_metrics_count_and_have_exactly_one_colon(engine: Engine) -> None:
    data = make_data(20, 9)
    metrics = run_request(engine, ForwardBackward(data=data)).metrics
    weights = np.concatenate([datum.inputs["weights"] for datum in data])
    assert all(key.count(":") == 1 for key in metrics)
    assert metrics["num_tokens:sum"] == 29
    assert metrics["num_datums:sum"] == 2
    assert metrics["num_scored:sum"] == np.count_nonzero(weights)
    assert metrics["weights:sum"] == pytest.approx(weights.sum())
    assert metrics["weights:min"] == 0
    data[0].inputs["weights"][3] = -0.5
    assert run_request(engine, ForwardBackward(data=data)).metrics["weights:min"] == -0.5


def test_a_dropped_run_is_unknown_and_its_name_is_free(engine: Engine) -> None:
    engine.drop("run")
    assert not engine.runs
    with pytest.raises(InvalidInput, match="'run' has no weights here"):
        engine.optim_step("run", ADAM)
    engine.create_adapter("run", LoraSpec(rank=2))
    assert list(engine.runs) == ["run"]


def test_a_seed_gives_the_same_adapter_and_another_seed_another(engine: Engine) -> None:
    first = read_values(engine)
    engine.create_adapter("run", LoraSpec(rank=4, seed=1))
    assert torch.equal(read_values(engine), first)
    engine.create_adapter("run", LoraSpec(rank=4, seed=2))
    assert not torch.equal(read_values(engine), first)


def test_a_fresh_adapter_is_uniform_within_the_bound_that_peft_uses(engine: Engine) -> None:
    for pair in engine.adapters.by_run["run"].pairs.values():
        bound = pair.a.shape[1] ** -0.5
        assert pair.a.abs().max().item() == pytest.approx(bound, rel=0.1)
        assert not pair.b.any()


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (LoraSpec(rank=-1), "rank is -1"),
        (LoraSpec(rank=10_000), "rank is 10000"),
        (LoraSpec(rank=4, alpha=float("nan")), "alpha is nan"),
        (LoraSpec(rank=4, train_attn=False, train_mlp=False), "nothing to train"),
    ],
)
def test_a_spec_that_cannot_be_trained_is_refused(
    engine: Engine, spec: LoraSpec, text: str
) -> None:
    with pytest.raises(InvalidInput, match=text):
        engine.create_adapter("new", spec)
    assert engine.runs == ("run",)


def test_flops_grow_with_tokens(engine: Engine) -> None:
    run_request(engine, ForwardBackward(data=make_data(8), forward_only=True))
    forward = engine.flops
    run_request(engine, ForwardBackward(data=make_data(8)))
    assert forward == 2 * engine.num_parameters * 8
    assert engine.flops == 3 * forward
