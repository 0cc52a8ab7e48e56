"""Layers cut over two ranks by transformers' plans: trained and saved as on one."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.engine.conftest import RANK_SECONDS, fail
from tests.training.engine.rows import make_data
from tests.training.engine.shapes import save_model
from tests.training.engine.test_custom_losses import ask, make_rollouts
from tests.training.engine.two_ranks import BUDGET, begin_alike, load
from training.engine.core import Engine
from training.engine.lead import Lead, LeadEngine
from training.engine.ranks import Plan
from training.errors import InvalidInput
from training.types import AdamParams, ForwardBackward, ForwardBackwardOutput, LoraSpec

ADAM = AdamParams(learning_rate=1e-2, eps=1e-4, grad_clip_norm=1.0)
SPECS = {
    "all": LoraSpec(rank=4, seed=1, train_unembed=True, train_embed=True),
    "attn": LoraSpec(rank=2, seed=2, train_mlp=False),
    "mlp": LoraSpec(rank=3, seed=3, train_attn=False),
}
LENGTHS = {"all": (30, 6, 41, 25), "attn": (9, 11), "mlp": (13,)}

Engines = tuple[Engine, LeadEngine]


@pytest.fixture(scope="module")
def lead() -> Iterator[Lead]:
    lead = Lead(Plan(size=2, sharing="tensor", limit_seconds=RANK_SECONDS), fail)
    yield lead
    lead.end()


@pytest.fixture(params=["llama-3", "qwen3", "mistral", "gemma-2", "gemma-3", "phi", "granite"])
def engines(request: pytest.FixtureRequest, lead: Lead, tmp_path: Path) -> Iterator[Engines]:
    path = save_model(request.param, tmp_path / "model")
    single, double = Engine.load(path, token_budget=BUDGET), load(lead, path)
    for engine in (single, double):
        for run, spec in SPECS.items():
            engine.create_adapter(run, spec)
    yield single, double
    lead.close(double)


@pytest.fixture
def double(lead: Lead, random_paths: dict[str, Path]) -> Iterator[LeadEngine]:
    engine = load(lead, random_paths["llama"])
    engine.create_adapter("all", SPECS["all"])
    yield engine
    lead.close(engine)


def learn(engine: Engine, step: bool = False) -> dict[str, ForwardBackwardOutput]:
    requests = {
        run: ForwardBackward(data=make_data(*LENGTHS[run], seed=len(run))) for run in engine.runs
    }
    outputs = engine.forward_backward(requests)
    if step:
        for run in engine.runs:
            engine.optim_step(run, ADAM)
    return {
        run: output for run, output in outputs.items() if isinstance(output, ForwardBackwardOutput)
    }


def read_gradients(engine: Engine, run: str) -> torch.Tensor:
    return engine.adapters.by_run[run].gradients.clone()


def test_losses_and_gradients_are_those_of_one_rank(engines: Engines, tmp_path: Path) -> None:
    begin_alike(*engines, tmp_path)
    expected, found = (learn(engine) for engine in engines)
    assert expected.keys() == found.keys() == SPECS.keys()
    for run, each in expected.items():
        assert found[run].metrics == pytest.approx(each.metrics, rel=1e-5, abs=1e-5)
        for ours, theirs in zip(found[run].logprobs, each.logprobs, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        single, double = (read_gradients(engine, run) for engine in engines)
        size = max(1.0, float(single.abs().max()))
        torch.testing.assert_close(double, single, atol=1e-5 * size, rtol=1e-5)


def test_a_checkpoint_moves_between_one_rank_and_two(
    double: LeadEngine, random_paths: dict[str, Path], tmp_path: Path
) -> None:
    learn(double, step=True)
    saved = double.save_weights("all", tmp_path / "a", optimizer=True)
    single = Engine.load(random_paths["llama"])
    single.load_weights("all", tmp_path / "a", optimizer=True)
    again = single.save_weights("all", tmp_path / "b", optimizer=True)
    assert again.digest == saved.digest
    assert again.probe.logprobs == pytest.approx(saved.probe.logprobs, abs=1e-5)
    double.load_weights("all", tmp_path / "b", optimizer=True)
    assert double.save_weights("all", tmp_path / "c", optimizer=True).digest == saved.digest


def test_the_same_steps_give_the_same_weights_bit_for_bit(double: LeadEngine) -> None:
    values = []
    for _ in range(2):
        double.create_adapter("all", SPECS["all"])
        learn(double, step=True)
        learn(double, step=True)
        values.append(double.adapters.by_run["all"].values.detach().clone())
    assert torch.equal(*values)


def test_a_custom_loss_that_fails_leaves_the_gradients_of_before(double: LeadEngine) -> None:
    learn(double)
    before = read_gradients(double, "all")
    rollouts = make_rollouts(30, 12)
    rollouts[0].inputs["advantages"][:] = np.nan
    outcome = double.forward_backward({"all": ask(rollouts)})["all"]
    assert isinstance(outcome, InvalidInput)
    assert torch.equal(read_gradients(double, "all"), before)
    double.optim_step("all", ADAM)


def test_each_rank_holds_half_of_the_decoder_layers(double: LeadEngine) -> None:
    layers = double.model.model.layers
    held = sum(weight.numel() for weight in layers.parameters())
    norms = sum(weight.numel() for name, weight in layers.named_parameters() if "norm" in name)
    whole = double.num_parameters - 2 * 97 * 48 - 48  # embedding, head, and the norm at the end
    assert 2 * (held - norms) == whole - norms
    assert double.count_bytes()[0] == double.count_bytes()[1]


@pytest.mark.parametrize("family", ["phi-3", "qwen3_moe"])
def test_a_family_whose_plan_is_not_known_is_refused_by_name(
    lead: Lead, family: str, mixtures: dict[str, Path], tmp_path: Path
) -> None:
    path = mixtures.get(family) or save_model(family, tmp_path / "model")
    with pytest.raises(InvalidInput, match="CausalLM has no plan to cut model"):
        load(lead, path)


def test_all_weights_are_not_trained_by_cut_layers(double: LeadEngine) -> None:
    double.drop("all")
    with pytest.raises(InvalidInput, match="where HONE_SHARD is fsdp or replicas"):
        double.create_adapter("run", LoraSpec(rank=0))
    double.create_adapter("all", SPECS["all"])
    learn(double, step=True)
