"""A run that leaves its engine and comes back goes on bit for bit; both sides are CPU tensors."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.training.engine.rows import make_data
from training.engine.core import Engine
from training.engine.paging import measure_run, page_in, page_out
from training.memory import Memory
from training.shapes import ModelShape
from training.types import AdamParams, DimuonParams, ForwardBackward, LoraSpec, Optimizer

Stir = Callable[[Engine, str], None]


def learn(engine: Engine, seed: int, run: str = "run") -> None:
    engine.forward_backward({run: ForwardBackward(data=make_data(9, 5, seed=seed))})


def step(engine: Engine, kind: Optimizer, run: str = "run") -> None:
    make = AdamParams if kind == "adamw" else DimuonParams
    engine.optim_step(run, make(learning_rate=0.1))


def read(engine: Engine, run: str = "run") -> list[torch.Tensor]:
    weights, state = engine.find_weights(run), engine.optimizers[run]
    tensors = [weights.values, weights.gradients, *state.moments.values()]
    return [*(tensor.detach().clone() for tensor in tensors), torch.tensor(state.num_steps)]


@pytest.mark.parametrize("kind", ["adamw", "dimuon"])
def test_what_comes_back_is_what_left(engine: Engine, kind: Optimizer, stir: Stir) -> None:
    engine.create_adapter("run", LoraSpec(rank=3, train_unembed=True), kind)
    stir(engine, "run")
    learn(engine, 1)
    step(engine, kind)
    learn(engine, 2)
    before = read(engine)
    page = page_out(engine, "run", torch.device("cpu"))
    assert engine.runs == ()
    page_in(engine, "run", page)
    assert all(new.equal(old) for new, old in zip(read(engine), before, strict=True))
    assert engine.has_gradients("run")


def test_a_run_that_was_away_between_a_pass_and_its_step_steps_like_one_that_stayed(
    engine: Engine, stir: Stir
) -> None:
    engine.create_adapter("other", LoraSpec(rank=4, seed=1))
    for run in ("run", "other"):
        engine.find_weights(run).values.detach().fill_(0.01)
        learn(engine, 1, run)
    page = page_out(engine, "other")
    learn(engine, 5)  # what goes on meanwhile
    engine.drop("run")
    engine.create_adapter("run", LoraSpec(rank=4, seed=1))
    engine.find_weights("run").values.detach().fill_(0.01)
    learn(engine, 1)
    page_in(engine, "other", page)
    for run in ("run", "other"):
        step(engine, "adamw", run)
        learn(engine, 2, run)
        step(engine, "adamw", run)
    assert all(new.equal(old) for new, old in zip(read(engine, "other"), read(engine), strict=True))


def test_gradients_take_no_host_memory_where_there_are_none(engine: Engine) -> None:
    counted = measure_run(engine, "run")
    page = page_out(engine, "run")
    assert page.gradients is None
    assert page.num_bytes == counted.total * 3 // 4
    page_in(engine, "run", page)
    assert not engine.has_gradients("run")
    assert measure_run(engine, "nobody").total == 0


def test_a_run_takes_between_its_steps_what_was_predicted(random_paths: dict[str, Path]) -> None:
    engine = Engine.load(random_paths["qwen3"])
    spec = LoraSpec(rank=5, train_unembed=True, train_mlp=False)
    engine.create_adapter("run", spec)
    predicted = Memory(shape=ModelShape.read(random_paths["qwen3"]), spec=spec).predict(10)
    standing = predicted.adapter + predicted.gradients + predicted.optimizer
    assert measure_run(engine, "run").total == standing
