"""Projection heads: against torch alone, through saves and loads, over ranks, and refused."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tests.training.engine.reference import load_peft, peft_parameters
from tests.training.engine.rows import make_data
from tests.training.engine.test_full import load_plainly
from tests.training.engine.test_vectors import ask, read_refusal
from tests.training.engine.two_ranks import BUDGET, load
from training.engine.core import Engine
from training.engine.lead import Lead
from training.engine.paging import measure_run, page_in, page_out
from training.engine.projection import HEAD
from training.errors import InvalidInput
from training.memory import Memory
from training.shapes import ModelShape
from training.types import AdamParams, Datum, DimuonParams, FloatArray, LoraSpec

Stir = Callable[[Engine, str], None]
DIM = 5
ADAM = AdamParams(learning_rate=1e-2, eps=1e-4)
CONFIG: dict[str, float | str] = {"output": "projection", "pooling": "mean"}
SPECS = {
    "adapter": LoraSpec(rank=4, seed=1, projection_head_dim=DIM),
    "whole": LoraSpec(rank=0, seed=1, projection_head_dim=DIM),
}


@pytest.fixture
def data() -> list[Datum]:
    return make_data(9, 21, 4)


def give(data: Sequence[Datum], width: int = DIM) -> list[Datum]:
    random = np.random.default_rng(3)
    return [
        replace(datum, inputs={"projection_grads": draw(random, len(datum.tokens), width)})
        for datum in data
    ]


def draw(random: np.random.Generator, rows: int, columns: int) -> FloatArray:
    return random.normal(size=(rows, columns)).astype(np.float32)


def read_head(engine: Engine, kind: str = "values") -> torch.Tensor:
    weights = engine.find_weights("run")
    return weights.view(getattr(weights, kind))[HEAD].detach().clone()


def project_plainly(
    model: PreTrainedModel, head: torch.Tensor, data: Sequence[Datum]
) -> list[torch.Tensor]:
    return [
        model(input_ids=torch.from_numpy(datum.tokens)[None], output_hidden_states=True)
        .hidden_states[-1][0]
        .float()
        @ head.T
        for datum in data
    ]


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("path", ["llama", "qwen3"])
def test_vectors_and_gradients_are_those_of_torch(
    random_paths: dict[str, Path],
    tmp_path: Path,
    stir: Stir,
    data: list[Datum],
    kind: str,
    path: str,
) -> None:
    engine = Engine.load(random_paths[path], token_budget=25)
    engine.create_adapter("run", SPECS[kind])
    if kind == "adapter":
        stir(engine, "run")
        engine.save_weights("run", tmp_path / "saved", optimizer=False)
        model = load_peft(random_paths[path], tmp_path / "saved")
        parameters = peft_parameters(model)
    else:
        model = load_plainly(random_paths[path])  # type: ignore[assignment]
        parameters = dict(model.named_parameters())
    head = read_head(engine).requires_grad_()
    given = give(data)
    output = ask(engine, given, config=CONFIG)
    expected = project_plainly(model, head, data)  # type: ignore[arg-type]
    assert output.vector_name == "projection"
    for left, right in zip(output.vectors or (), expected, strict=True):
        np.testing.assert_allclose(left, right.detach().numpy(), atol=1e-5)
    pulls = [
        (vector * torch.from_numpy(datum.inputs["projection_grads"])).sum()
        for vector, datum in zip(expected, given, strict=True)
    ]
    loss = torch.stack(pulls).sum()
    loss.backward()
    assert output.metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-4)
    weights = engine.find_weights("run")
    scale = max(1.0, float(weights.gradients.abs().max()))
    found = weights.view(weights.gradients)
    assert head.grad is not None
    torch.testing.assert_close(found[HEAD], head.grad, atol=1e-5 * scale, rtol=1e-4)
    for name, parameter in parameters.items():
        slope = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[name], slope, atol=1e-5 * scale, rtol=1e-4)
    assert weights.counts.num_loss_tokens == sum(len(datum.tokens) for datum in data)


@pytest.mark.parametrize("kind", SPECS)
def test_a_head_learns_and_its_state_goes_on_to_the_bit(
    random_paths: dict[str, Path], tmp_path: Path, data: list[Datum], kind: str
) -> None:
    engine = Engine.load(random_paths["llama"])
    engine.create_adapter("run", SPECS[kind])
    fresh = read_head(engine)
    assert fresh.std() > 0
    ask(engine, give(data), config=CONFIG)
    engine.optim_step("run", ADAM)
    assert not torch.equal(read_head(engine), fresh)
    engine.save_weights("run", tmp_path / "state", optimizer=True)
    other = Engine.load(random_paths["llama"])
    other.load_weights("run", tmp_path / "state", optimizer=True)
    for each in (engine, other):
        ask(each, give(data), config=CONFIG)
        each.optim_step("run", ADAM)
    assert torch.equal(other.find_weights("run").values, engine.find_weights("run").values)
    assert torch.equal(read_head(other), read_head(engine))


def test_the_file_that_servers_read_knows_nothing_of_it(
    random_paths: dict[str, Path], tmp_path: Path
) -> None:
    plain, headed = (Engine.load(random_paths["llama"]) for _ in range(2))
    plain.create_adapter("run", replace(SPECS["adapter"], projection_head_dim=0))
    headed.create_adapter("run", SPECS["adapter"])
    saved = [
        engine.save_weights("run", tmp_path / name, optimizer=False)
        for name, engine in {"plain": plain, "headed": headed}.items()
    ]
    assert saved[0].digest == saved[1].digest  # the same seed begins the rest alike
    assert HEAD not in load_file(tmp_path / "headed" / "adapter_model.safetensors")
    plain.load_adapter("run", tmp_path / "headed")
    headed.load_adapter("run", tmp_path / "plain")
    assert read_head(headed).any()
    (tmp_path / "headed" / "projection_head.safetensors").write_bytes(b"half")
    with pytest.raises(InvalidInput, match="headed is damaged: projection_head"):
        headed.load_weights("run", tmp_path / "headed", optimizer=False)


def test_it_pages_steps_by_dimuon_and_takes_what_was_predicted(
    random_paths: dict[str, Path], data: list[Datum]
) -> None:
    engine = Engine.load(random_paths["llama"])
    engine.create_adapter("run", SPECS["adapter"], "dimuon")
    ask(engine, give(data), config=CONFIG)
    page_in(engine, "run", page_out(engine, "run"))
    before = read_head(engine)
    assert read_head(engine, "gradients").any()
    engine.optim_step("run", DimuonParams(learning_rate=0.01))
    assert not torch.equal(read_head(engine), before)
    ask(engine, give(data), config=CONFIG)
    assert read_head(engine, "gradients").any()
    shape = ModelShape.read(random_paths["llama"])
    memory = Memory(shape=shape, spec=SPECS["adapter"], optimizer="dimuon").predict(1)
    standing = memory.adapter + memory.gradients + memory.optimizer
    assert measure_run(engine, "run").total == standing


def test_runs_without_a_head_and_gradients_of_another_shape_are_refused(
    engine: Engine, data: list[Datum]
) -> None:
    words = read_refusal(engine, data, config=CONFIG, forward_only=True)
    assert "created without projection_head_dim" in words
    engine.create_adapter("run", SPECS["adapter"])
    assert "has the shape (9, 7), what the forward gave for it (9, 5)" in read_refusal(
        engine, give(data, 7), config=CONFIG
    )
    assert "projection_grads is missing" in read_refusal(engine, data, config=CONFIG)
    for dim in (-1, 10**6):
        with pytest.raises(InvalidInput, match=f"projection_head_dim is {dim}"):
            engine.create_adapter("run", LoraSpec(rank=2, projection_head_dim=dim))


@pytest.fixture
def pair(lead: Lead, random_paths: dict[str, Path]) -> Iterator[tuple[Engine, Engine]]:
    double = load(lead, random_paths["llama"])
    yield Engine.load(random_paths["llama"], token_budget=BUDGET), double
    lead.close(double)


@pytest.mark.parametrize("kind", SPECS)
def test_ranks_train_it_together_where_they_do_not_cut_the_model(
    pair: tuple[Engine, Engine], lead: Lead, data: list[Datum], kind: str
) -> None:
    single, double = pair
    single.create_adapter("run", SPECS[kind])
    if kind == "whole" and lead.ranks.plan.sharing == "fsdp":
        with pytest.raises(InvalidInput, match="this worker's ranks cut a model's weights"):
            double.create_adapter("run", SPECS[kind])
        return
    double.create_adapter("run", SPECS[kind])
    for engine in pair:
        ask(engine, give(data), config=CONFIG)
        engine.optim_step("run", ADAM)
    torch.testing.assert_close(read_head(double), read_head(single), atol=1e-4, rtol=1e-4)
