"""Gradients divided by tokens or sequences that have some, and what a step tells of their norms."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.training.engine.rows import make_data, make_datum
from tests.training.engine.two_ranks import BUDGET, load
from training.engine.core import Engine
from training.engine.lead import Lead
from training.engine.paging import page_in, page_out
from training.errors import InvalidInput
from training.types import (
    AdamParams,
    Datum,
    DimuonParams,
    ForwardBackward,
    GradAccNormalization,
    LoraSpec,
    StepOptions,
)

Stir = Callable[[Engine, str], None]
ADAM = AdamParams(learning_rate=1e-2, eps=1e-4, grad_clip_norm=0.05)
TOKENS = StepOptions(grad_accumulation_normalization="num_loss_tokens")
SEQUENCES = StepOptions(grad_accumulation_normalization="num_sequences")
DETAILED = StepOptions(emit_grad_norm_metrics="detailed")


def learn(engine: Engine, *data: Datum, run: str = "run", **settings: object) -> None:
    request = ForwardBackward(data=data, **settings)  # type: ignore[arg-type]
    engine.forward_backward({run: request})


def count(engine: Engine, run: str = "run") -> tuple[int, int]:
    counts = engine.find_weights(run).counts
    return counts.num_loss_tokens, counts.num_sequences


def weigh(*weights: float) -> Datum:
    datum = make_datum(len(weights))
    return replace(datum, inputs={**datum.inputs, "weights": np.array(weights, np.float32)})


@pytest.mark.parametrize("kind", ["num_loss_tokens", "num_sequences"])
@pytest.mark.parametrize("is_full", [False, True])
def test_a_step_divides_the_sum_before_it_is_clipped(
    random_paths: dict[str, Path], kind: GradAccNormalization, *, is_full: bool
) -> None:
    engines = [Engine.load(random_paths["llama"]) for _ in range(2)]
    for engine in engines:
        engine.create_adapter("run", LoraSpec(rank=0 if is_full else 4))
        learn(engine, weigh(0, 1, 0.5), weigh(0, 0, 0, 0))
        learn(engine, weigh(-2, 0, 0, 0, 1))
    divided, plain = engines
    number = {"num_loss_tokens": 4, "num_sequences": 2}[kind]
    gradients = plain.find_weights("run").gradients
    norm = float(gradients.norm()) / number
    gradients.div_(number)
    expected = plain.optim_step("run", ADAM)
    found = divided.optim_step("run", ADAM, StepOptions(grad_accumulation_normalization=kind))
    assert found.metrics == {**expected.metrics, kind: number}
    assert found.metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert norm > ADAM.grad_clip_norm
    values = [engine.find_weights("run").values for engine in engines]
    assert torch.equal(*values)


def test_a_step_without_the_option_sums_as_before(engine: Engine) -> None:
    learn(engine, weigh(1, 1, 1))
    norm = float(engine.find_weights("run").gradients.norm())
    metrics = engine.optim_step("run", ADAM).metrics
    assert metrics.keys() == {"grad_norm", "learning_rate"}
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_dimuon_divides_too(engine: Engine) -> None:
    engine.create_adapter("run", LoraSpec(rank=4), "dimuon")
    learn(engine, weigh(1, 1, 1, 1))
    norm = float(engine.find_weights("run").gradients.norm())
    metrics = engine.optim_step("run", DimuonParams(learning_rate=0.01), TOKENS).metrics
    assert metrics["grad_norm"] == pytest.approx(norm / 4, rel=1e-5)


def test_what_counts_is_a_gradient_that_is_not_zero(engine: Engine) -> None:
    """Of ppo the tokens whose ratio is cut have none; they have an advantage all the same."""
    datum = make_datum(4)
    inputs = {
        **datum.inputs,
        "advantages": np.array([1, 1, -1, 0], np.float32),
        # A ratio far above its bound, far below, far below, and one that nobody asks for.
        "logprobs": np.array([-50, 0, 0, -3], np.float32),
    }
    learn(engine, replace(datum, inputs=inputs), loss_fn="ppo")
    assert count(engine) == (1, 1)
    learn(engine, replace(datum, inputs=inputs), loss_fn="importance_sampling")
    assert count(engine) == (1 + 3, 2)


def test_several_targets_of_a_position_are_one_token(engine: Engine) -> None:
    datum = make_datum(3)
    inputs: dict[str, NDArray[Any]] = {
        "target_tokens": np.ones((3, 2), np.int64),
        "weights": np.array([[1, 0], [0, 0], [1, 1]], np.float32),
    }
    learn(engine, replace(datum, inputs=inputs))
    assert count(engine) == (2, 1)


def test_tokens_that_datums_share_count_for_each(engine: Engine) -> None:
    long = make_datum(40)
    on = replace(long, inputs={**long.inputs, "weights": np.ones(40, np.float32)})
    learn(engine, on, on)
    assert count(engine) == (80, 2)


def test_every_pass_of_a_request_counts(engine: Engine) -> None:
    engine.token_budget = 20
    data = make_data(15, 18, 11)
    learn(engine, *data)
    num_tokens = sum(int(np.count_nonzero(datum.inputs["weights"])) for datum in data)
    assert count(engine) == (num_tokens, 3)


def test_looks_and_requests_that_were_refused_do_not_count(engine: Engine) -> None:
    learn(engine, weigh(1, 1), forward_only=True)
    learn(engine, make_datum(3), loss_fn="unknown")
    assert count(engine) == (0, 0)


def test_runs_count_for_themselves_and_a_step_begins_anew(engine: Engine) -> None:
    engine.create_adapter("other", LoraSpec(rank=2))
    engine.forward_backward(
        {
            "run": ForwardBackward(data=[weigh(1, 1)]),
            "other": ForwardBackward(data=[weigh(1, 0, 0), weigh(0, 1)]),
        }
    )
    assert (count(engine), count(engine, "other")) == ((2, 1), (2, 2))
    engine.optim_step("other", ADAM, SEQUENCES)
    assert (count(engine), count(engine, "other")) == ((2, 1), (0, 0))
    assert engine.optim_step("other", ADAM, SEQUENCES).metrics["num_sequences"] == 0
    with pytest.raises(InvalidInput):
        engine.optim_step("run", AdamParams(beta1=2.0), TOKENS)
    assert count(engine) == (2, 1)


def test_a_run_that_was_away_still_knows_what_it_counted(engine: Engine) -> None:
    learn(engine, weigh(1, 0, 1))
    page = page_out(engine, "run")
    page_in(engine, "run", page)
    assert count(engine) == (2, 1)


@pytest.mark.parametrize("path", ["llama", "qwen3"])
def test_the_norms_of_a_models_parts_are_those_of_the_whole(
    random_paths: dict[str, Path], path: str, stir: Stir
) -> None:
    engine = Engine.load(random_paths[path])
    engine.create_adapter("run", LoraSpec(rank=4, train_unembed=True))
    stir(engine, "run")
    learn(engine, make_datum(20))
    gradients = engine.find_weights("run").gradients.clone()
    metrics = engine.optim_step("run", ADAM, DETAILED).metrics
    buckets = {key: value for key, value in metrics.items() if key.startswith("grad_norm/")}
    assert buckets.keys() == {"grad_norm/attn", "grad_norm/mlp", "grad_norm/unembed"}
    whole = math.sqrt(sum(value**2 for value in buckets.values()))
    assert whole == pytest.approx(metrics["grad_norm"], rel=1e-5)
    assert metrics["grad_rms"] == pytest.approx(float(gradients.square().mean().sqrt()), rel=1e-5)


def test_norms_and_embeddings_of_a_whole_model_are_parts_too(
    random_paths: dict[str, Path],
) -> None:
    engine = Engine.load(random_paths["llama"])
    engine.create_adapter("run", LoraSpec(rank=0))
    learn(engine, make_datum(20))
    metrics = engine.optim_step("run", ADAM, DETAILED).metrics
    buckets = {key.partition("/")[2] for key in metrics if "/" in key}
    assert buckets == {"attn", "mlp", "unembed", "embed", "norm"}


@pytest.fixture(params=[4, 0], ids=["adapter", "whole"])
def engines(
    request: pytest.FixtureRequest, lead: Lead, random_paths: dict[str, Path]
) -> Iterator[tuple[Engine, Engine]]:
    single, double = Engine.load(random_paths["llama"], token_budget=BUDGET), None
    double = load(lead, random_paths["llama"])
    for engine in (single, double):
        engine.create_adapter("run", LoraSpec(rank=request.param))
    yield single, double
    lead.close(double)


def test_ranks_count_and_divide_together(engines: tuple[Engine, Engine]) -> None:
    told = []
    options = replace(DETAILED, grad_accumulation_normalization="num_loss_tokens")
    for engine in engines:
        learn(engine, *make_data(30, 6, 41, 25))
        assert count(engine)[1] == 4
        told.append(engine.optim_step("run", ADAM, options).metrics)
    assert told[1] == pytest.approx(told[0], rel=1e-4)
