"""All weights of a model on two ranks, cut or copied: trained, saved and refused as on one."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.training.engine.rows import make_data
from tests.training.engine.shapes import save_model
from tests.training.engine.test_custom_losses import ask, make_rollouts
from tests.training.engine.two_ranks import BUDGET, load
from training.engine.core import Engine
from training.engine.lead import Lead, LeadEngine
from training.errors import InvalidInput
from training.types import AdamParams, ForwardBackward, ForwardBackwardOutput, LoraSpec

FULL = LoraSpec(rank=0)
# With a larger eps than the default's, steps of tiny gradients are not made of rounding errors.
ADAM = AdamParams(learning_rate=1e-3, eps=1e-4, weight_decay=0.1, grad_clip_norm=1.0)

Engines = tuple[Engine, LeadEngine]


@pytest.fixture(params=["llama", "qwen3", "phi", "qwen3-moe"])
def path(request: pytest.FixtureRequest, random_paths: dict[str, Path], tmp_path: Path) -> Path:
    """With a head of its own, a tied one, one with a bias, and a mixture of five experts."""
    known = random_paths.get(request.param)
    return known or save_model(request.param, tmp_path / request.param)


@pytest.fixture
def engines(lead: Lead, path: Path) -> Iterator[Engines]:
    single, double = Engine.load(path, token_budget=BUDGET), load(lead, path)
    for engine in (single, double):
        engine.create_adapter("run", FULL)
    yield single, double
    lead.close(double)


@pytest.fixture
def make_double(lead: Lead) -> Iterator[Callable[..., LeadEngine]]:
    """Two ranks' engines alone, each with its run."""
    made = []

    def make(path: Path, dtype: torch.dtype = torch.float32) -> LeadEngine:
        made.append(load(lead, path, dtype))
        made[-1].create_adapter("run", FULL)
        return made[-1]

    yield make
    for engine in made:
        lead.close(engine)


def learn(engine: Engine, *lengths: int, **options: object) -> ForwardBackwardOutput:
    request = ForwardBackward(data=make_data(*lengths), **options)  # type: ignore[arg-type]
    output = engine.forward_backward({"run": request})["run"]
    assert isinstance(output, ForwardBackwardOutput)
    return output


def train(engine: Engine, lengths: Sequence[int], steps: int = 2) -> None:
    for _ in range(steps):
        learn(engine, *lengths)
        engine.optim_step("run", ADAM)


def read(engine: Engine, kind: str) -> dict[str, torch.Tensor]:
    """Whole tensors, wherever they lie."""
    assert engine.full is not None
    weights = engine.full.weights
    if isinstance(engine, LeadEngine) and engine.sharded is not None:
        return {name: engine.gather_whole("run", kind, name) for name in weights.shapes}
    flat = {"values": weights.values, "gradients": weights.gradients}[kind]
    return {name: each.clone() for name, each in weights.view(flat).items()}


def check_alike(engines: Engines, kind: str, tolerance: float = 1e-5) -> None:
    single, double = (read(engine, kind) for engine in engines)
    assert single.keys() == double.keys()
    for name, expected in single.items():
        size = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(
            double[name], expected, atol=tolerance * size, rtol=tolerance, msg=name
        )


@pytest.mark.parametrize("lengths", [(30, 6, 41, 25), (13,)], ids=["several", "idle rank"])
def test_losses_and_gradients_are_those_of_one_rank(
    engines: Engines, lengths: tuple[int, ...]
) -> None:
    single, double = engines
    for _ in range(2):  # what is summed, not what came last
        expected, found = learn(single, *lengths), learn(double, *lengths)
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-5)
    for ours, theirs in zip(found.logprobs, expected.logprobs, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    learn(double, *lengths, forward_only=True)
    check_alike(engines, "gradients")
    double.drop_gradients("run")
    assert all(not each.any() for each in read(double, "gradients").values())


def test_weights_after_steps_are_those_of_one_rank(engines: Engines) -> None:
    for engine in engines:
        train(engine, (30, 6, 25))
    check_alike(engines, "values", 1e-4)


def test_checkpoints_move_between_one_rank_and_two(engines: Engines, tmp_path: Path) -> None:
    single, double = engines
    train(double, (30, 6, 25))
    saved = double.save_weights("run", tmp_path / "double", optimizer=True)
    single.load_weights("run", tmp_path / "double", optimizer=True)
    again = single.save_weights("run", tmp_path / "single", optimizer=True)
    assert again.digest == saved.digest
    assert again.probe.logprobs == pytest.approx(saved.probe.logprobs, abs=1e-5)
    double.load_weights("run", tmp_path / "single", optimizer=True)
    for engine in engines:
        train(engine, (9, 14), 1)
    check_alike(engines, "values", 1e-4)


def test_a_saved_model_and_a_delta_are_what_other_loaders_read(
    make_double: Callable[..., LeadEngine], random_paths: dict[str, Path], tmp_path: Path
) -> None:
    double = make_double(random_paths["llama"])
    train(double, (20, 9))
    double.save_weights("run", tmp_path / "base", optimizer=False)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict()
    for name, value in read(double, "values").items():
        assert torch.equal(theirs[name], value)
    train(double, (20, 9), 1)
    delta = double.save_weights(
        "run", tmp_path / "delta", optimizer=False, previous=tmp_path / "base"
    )
    assert delta.type == "delta"
    whole = double.save_weights("run", tmp_path / "whole", optimizer=False)
    double.load_weights("run", tmp_path / "delta", optimizer=False)
    assert whole.digest == delta.digest
    assert double.save_weights("run", tmp_path / "again", optimizer=False).digest == whole.digest


def test_a_model_stored_in_bfloat16_has_a_float32_master_on_each_rank(
    make_double: Callable[..., LeadEngine], random_paths: dict[str, Path], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(random_paths["llama"], dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "narrow")
    for dtype in (torch.float32, torch.bfloat16):
        double = make_double(tmp_path / "narrow", dtype)
        train(double, (20, 9))
        before = read(double, "values")
        saved = double.save_weights("run", tmp_path / "saved", optimizer=True)
        assert any(not torch.equal(each, each.bfloat16().float()) for each in before.values())
        double.load_weights("run", tmp_path / "saved", optimizer=True)
        for name, each in read(double, "values").items():
            assert torch.equal(each, before[name])
        single = Engine.load(tmp_path / "narrow", dtype=dtype)
        single.load_weights("run", tmp_path / "saved", optimizer=True)
        expected = single.save_weights("run", tmp_path / "expected", optimizer=True)
        assert expected.digest == saved.digest
        wide = dtype == torch.float32
        tolerance = 1e-5 if wide else 0.1
        assert saved.probe.logprobs == pytest.approx(expected.probe.logprobs, abs=tolerance)


def test_the_same_steps_give_the_same_weights_bit_for_bit(
    make_double: Callable[..., LeadEngine], random_paths: dict[str, Path]
) -> None:
    double = make_double(random_paths["qwen3"])
    train(double, (30, 6, 25), 3)
    first = read(double, "values")
    double.create_adapter("run", FULL)
    train(double, (30, 6, 25), 3)
    for name, each in read(double, "values").items():
        assert torch.equal(each, first[name])


def test_a_custom_loss_that_fails_leaves_the_gradients_of_before_on_all_ranks(
    make_double: Callable[..., LeadEngine], random_paths: dict[str, Path]
) -> None:
    double = make_double(random_paths["llama"])
    learn(double, 12, 20)
    before = read(double, "gradients")
    rollouts = make_rollouts(30, 12, 25)
    rollouts[2].inputs["advantages"][:] = np.nan
    outcome = double.forward_backward({"run": ask(rollouts)})["run"]
    assert isinstance(outcome, InvalidInput)
    for name, each in read(double, "gradients").items():
        assert torch.equal(each, before[name])


def test_what_is_refused_leaves_the_ranks_in_step(
    make_double: Callable[..., LeadEngine], random_paths: dict[str, Path], tmp_path: Path
) -> None:
    double = make_double(random_paths["llama"])
    before = read(double, "values")
    learn(double, 20, 9)
    assert double.full is not None
    double.full.weights.gradients[0] = torch.inf
    with pytest.raises(InvalidInput, match="not finite"):
        double.optim_step("run", ADAM)
    for name, each in read(double, "values").items():
        assert torch.equal(each, before[name])
    with pytest.raises(InvalidInput, match="no complete checkpoint"):
        double.load_weights("run", tmp_path / "nothing", optimizer=True)
    with pytest.raises(InvalidInput, match="has the whole model for itself"):
        double.create_adapter("other", LoraSpec(rank=4))
    train(double, (20, 9), 1)


def test_each_rank_has_half_of_master_moments_and_gradients(
    lead: Lead, make_double: Callable[..., LeadEngine], random_paths: dict[str, Path]
) -> None:
    double = make_double(random_paths["llama"])
    assert double.full is not None
    share = double.full.weights.num_parameters / double.num_parameters
    state = double.optimizers["run"]
    assert {each.numel() for each in state.moments.values()} == {len(double.full.weights.values)}
    if lead.ranks.plan.sharing == "replicas":
        assert share == 1
    else:
        assert 0.5 <= share < 0.52
