"""Two ranks over gloo do what one does: losses, gradients, steps, checkpoints, refusals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.engine.rows import make_data, make_datum
from tests.training.engine.shapes import save_model
from tests.training.engine.test_custom_losses import ask, make_rollouts
from tests.training.engine.two_ranks import BUDGET, begin_alike, load
from training.engine.core import Engine
from training.engine.lead import Lead, LeadEngine
from training.engine.packing import Item
from training.engine.ranked import cut_shares
from training.engine.ranks import OutOfStep, Plan
from training.errors import InvalidInput
from training.memory import Memory, Room
from training.shapes import ModelShape
from training.types import (
    AdamParams,
    DimuonParams,
    ForwardBackward,
    ForwardBackwardOutput,
    LoraSpec,
)

ADAM = AdamParams(learning_rate=1e-2, grad_clip_norm=1.0)
SPECS = {
    "all": LoraSpec(rank=4, seed=1, train_unembed=True),
    "attn": LoraSpec(rank=2, seed=2, train_mlp=False),
    "head": LoraSpec(rank=3, seed=3, train_attn=False, train_mlp=False, train_unembed=True),
}
LENGTHS = {"all": (30, 6, 41, 25), "attn": (9, 11), "head": (13,)}

Engines = tuple[Engine, LeadEngine]
Outputs = Mapping[str, ForwardBackwardOutput]


@pytest.fixture(params=["llama", "qwen3"])
def engines(
    request: pytest.FixtureRequest, lead: Lead, random_paths: dict[str, Path]
) -> Iterator[Engines]:
    """One rank's and two ranks', with the same runs. The Qwen3's head is its embedding."""
    path = random_paths[request.param]
    single = Engine.load(path, token_budget=BUDGET)
    double = load(lead, path)
    for engine in (single, double):
        for run, spec in SPECS.items():
            engine.create_adapter(run, spec)
    yield single, double
    lead.close(double)


@pytest.fixture
def double(lead: Lead, random_paths: dict[str, Path]) -> Iterator[LeadEngine]:
    """Two ranks' alone, with one run, `run`."""
    engine = load(lead, random_paths["llama"])
    engine.create_adapter("run", LoraSpec(rank=4, seed=1))
    yield engine
    lead.close(engine)


def learn(
    engine: Engine, lengths: Mapping[str, Sequence[int]] = LENGTHS, **options: Any
) -> Outputs:
    requests = {
        run: ForwardBackward(data=make_data(*each, seed=len(run)), **options)
        for run, each in lengths.items()
    }
    outputs = engine.forward_backward(requests)
    return {
        run: output for run, output in outputs.items() if isinstance(output, ForwardBackwardOutput)
    }


def train(engine: Engine, steps: int = 2, run: str = "run") -> None:
    for number in range(steps):
        learn(engine, {run: (20 + number, 9, 31)})
        engine.optim_step(run, ADAM)


def read_gradients(engine: Engine, run: str) -> torch.Tensor:
    return engine.adapters.by_run[run].gradients.clone()


def read_values(engine: Engine, run: str = "run") -> torch.Tensor:
    return engine.adapters.by_run[run].values.detach().clone()


def check_outputs(found: Outputs, expected: Outputs) -> None:
    assert found.keys() == expected.keys()
    for run, each in expected.items():
        assert found[run].metrics == pytest.approx(each.metrics, rel=1e-5, abs=1e-5)
        for ours, theirs in zip(found[run].logprobs, each.logprobs, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def check_gradients(engines: Engines) -> None:
    single, double = engines
    for run in single.runs:
        expected = read_gradients(single, run)
        size = max(1.0, float(expected.abs().max()))
        found = read_gradients(double, run)
        torch.testing.assert_close(found, expected, atol=1e-5 * size, rtol=1e-5)


@pytest.mark.parametrize("loss_fn", ["cross_entropy", "ppo", "importance_sampling", "dro"])
def test_losses_and_gradients_are_those_of_one_rank(
    engines: Engines, loss_fn: str, tmp_path: Path
) -> None:
    single, double = engines
    begin_alike(single, double, tmp_path)
    single.flops = double.flops = 0.0
    expected = learn(single, loss_fn=loss_fn)
    assert expected.keys() == LENGTHS.keys()
    check_outputs(learn(double, loss_fn=loss_fn), expected)
    check_gradients(engines)
    assert double.flops == pytest.approx(single.flops, rel=0.3)  # an idle rank's row comes on top


@pytest.mark.parametrize("family", ["llama-3", "gemma-2", "gemma-3", "phi-3-longrope", "granite"])
def test_families_with_their_peculiarities_are_cut_and_put_together(
    lead: Lead, family: str, tmp_path: Path
) -> None:
    path = save_model(family, tmp_path / family)
    single, double = Engine.load(path, token_budget=BUDGET), load(lead, path)
    single.create_adapter("run", LoraSpec(rank=4, seed=1, train_embed=True, train_unembed=True))
    begin_alike(single, double, tmp_path)
    lengths = {"run": (30, 6, 25)}
    check_outputs(learn(double, lengths), learn(single, lengths))
    check_gradients((single, double))
    lead.close(double)


def test_experts_are_cut_too_and_their_routes_recorded_and_followed(
    lead: Lead, mixture: Path, tmp_path: Path
) -> None:
    double = load(lead, mixture)
    engines = Engine.load(mixture, token_budget=BUDGET), double
    engines[0].create_adapter("run", LoraSpec(rank=2, seed=1))
    begin_alike(*engines, tmp_path)
    asked = {"run": ForwardBackward(data=make_data(30, 12, 25), with_routes=True)}
    recorded = [engine.forward_backward(asked)["run"] for engine in engines]
    routes = [output.routes for output in recorded if isinstance(output, ForwardBackwardOutput)]
    assert routes[0] is not None
    assert routes[1] is not None
    for ours, theirs in zip(routes[1], routes[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    backwards = [each[::-1] for each in routes[0]]
    data = [
        replace(datum, routes=each)
        for datum, each in zip(asked["run"].data, backwards, strict=True)
    ]
    for engine in engines:
        engine.drop_gradients("run")
        engine.forward_backward({"run": ForwardBackward(data=data)})
    check_gradients(engines)
    lead.close(double)


def test_what_is_asked_without_gradients_leaves_them_alone(engines: Engines) -> None:
    single, double = engines
    for engine in engines:
        learn(engine)
    check_outputs(learn(double, forward_only=True), learn(single, forward_only=True))
    check_gradients(engines)


def test_a_custom_loss_is_computed_where_its_datum_is(engines: Engines) -> None:
    requests = {"all": ask(make_rollouts(30, 12, 25)), "attn": ForwardBackward(data=make_data(8))}
    outputs = [engine.forward_backward(requests) for engine in engines]
    found, expected = outputs[1]["all"], outputs[0]["all"]
    assert isinstance(found, ForwardBackwardOutput)
    assert isinstance(expected, ForwardBackwardOutput)
    check_outputs({"all": found}, {"all": expected})
    check_gradients(engines)


def test_a_custom_loss_that_fails_on_one_rank_leaves_the_gradients_of_before(
    double: LeadEngine,
) -> None:
    learn(double, {"run": (12, 20)})
    before = read_gradients(double, "run")
    rollouts = make_rollouts(30, 12, 25)
    rollouts[2].inputs["advantages"][:] = np.nan
    outcome = double.forward_backward({"run": ask(rollouts)})["run"]
    assert isinstance(outcome, InvalidInput)
    assert "datum 2" in str(outcome)
    assert torch.equal(read_gradients(double, "run"), before)
    double.optim_step("run", ADAM)  # the other rank kept nothing of it either


def test_steps_are_those_of_one_rank_and_ranks_can_be_left_and_joined_at_a_checkpoint(
    engines: Engines, tmp_path: Path
) -> None:
    single, double = engines
    train(single, run="all")
    train(double, run="all")
    saved = double.save_weights("all", tmp_path / "double", optimizer=True)
    expected = single.save_weights("all", tmp_path / "single", optimizer=True)
    assert saved.probe.logprobs == pytest.approx(expected.probe.logprobs, abs=1e-4)
    for engine, name in ((single, "double"), (double, "single")):
        engine.load_weights("all", tmp_path / name, optimizer=True)
        train(engine, run="all")
    torch.testing.assert_close(
        read_values(double, "all"), read_values(single, "all"), atol=1e-4, rtol=1e-3
    )
    again = single.save_weights("all", tmp_path / "again", optimizer=True)
    assert again.digest != saved.digest


def test_a_moved_checkpoint_has_the_same_digest_on_any_number_of_ranks(
    engines: Engines, tmp_path: Path
) -> None:
    single, double = engines
    train(double, run="all")
    saved = double.save_weights("all", tmp_path / "a", optimizer=True)
    single.load_weights("all", tmp_path / "a", optimizer=True)
    assert single.save_weights("all", tmp_path / "b", optimizer=True).digest == saved.digest
    double.load_weights("all", tmp_path / "b", optimizer=True)
    assert double.save_weights("all", tmp_path / "c", optimizer=True).digest == saved.digest


def test_the_same_steps_give_the_same_weights_bit_for_bit(double: LeadEngine) -> None:
    train(double, steps=3)
    first = read_values(double)
    double.create_adapter("run", LoraSpec(rank=4, seed=1))
    train(double, steps=3)
    assert torch.equal(read_values(double), first)


def test_dimuon_steps_on_both_ranks_alike(double: LeadEngine) -> None:
    double.create_adapter("run", LoraSpec(rank=4, seed=1), "dimuon")
    learn(double, {"run": (20, 9)})
    before = read_values(double)
    double.optim_step("run", DimuonParams(learning_rate=0.02))
    assert not torch.equal(read_values(double), before)


def test_each_rank_holds_half_of_the_weights_or_a_copy(lead: Lead, double: LeadEngine) -> None:
    whole = 4 * double.num_parameters
    counted = double.count_bytes()
    shape = ModelShape.read(double.path)
    memory = Memory(shape=shape, spec=LoraSpec(rank=4), num_pieces=lead.ranks.plan.num_pieces)
    predicted = memory.predict(0).weights
    if lead.ranks.plan.sharing == "replicas":
        assert counted == [whole, whole]
        assert predicted == whole
        return
    assert sum(counted) == whole
    assert max(counted) < 0.52 * whole
    ends = 4 * 2 * 97 * 48
    layer = (whole - ends) / 3
    assert predicted == pytest.approx(whole / 2 + ends + 2 * layer, rel=0.01)
    learn(double, {"run": (20, 9)})
    double.probe("run")
    assert double.count_bytes() == counted  # what a pass gathers does not stay


def test_what_is_refused_leaves_the_ranks_in_step(double: LeadEngine, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no complete checkpoint"):
        double.load_weights("run", tmp_path / "nothing", optimizer=True)
    with pytest.raises(InvalidInput, match="rank is 1000"):
        double.create_adapter("other", LoraSpec(rank=1000))
    outcome = double.forward_backward({"run": ForwardBackward(data=[make_datum(2000)])})["run"]
    assert isinstance(outcome, InvalidInput)
    learn(double, {"run": (20, 9)})
    with pytest.raises(InvalidInput, match="beta1"):
        double.optim_step("run", AdamParams(beta1=1.5))
    assert double.has_gradients("run")
    double.adapters.by_run["run"].gradients[0] = torch.inf
    with pytest.raises(InvalidInput, match="not finite"):
        double.optim_step("run", ADAM)
    assert not double.has_gradients("run")
    train(double)


def test_a_run_without_room_is_refused_by_all_ranks(
    lead: Lead, double: LeadEngine, random_paths: dict[str, Path], tmp_path: Path
) -> None:
    path = random_paths["llama"]
    saved = double.save_weights("run", tmp_path / "saved", optimizer=True)
    room = Room(shape=ModelShape.read(path), num_bytes=100_000, num_pieces=2)
    narrow = lead.load(path, dtype=torch.float32, token_budget=BUDGET, room=room)
    with pytest.raises(InvalidInput, match="this worker has 97"):
        narrow.create_adapter("run", LoraSpec(rank=4))
    with pytest.raises(InvalidInput, match="this worker has 97"):
        narrow.load_weights("run", tmp_path / "saved", optimizer=True)
    lead.close(narrow)
    assert double.save_weights("run", tmp_path / "again", optimizer=True).digest == saved.digest


def test_ranks_read_a_model_one_after_the_other_where_memory_is_short(
    lead: Lead, random_paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("training.engine.lead.SHARE_OF_HOST", 0.0)
    path = random_paths["llama"]
    assert lead.must_take_turns(path) == (lead.ranks.plan.sharing == "fsdp")
    monkeypatch.setattr(lead, "must_take_turns", lambda _: True)
    engine = load(lead, path)
    engine.create_adapter("run", LoraSpec(rank=4, seed=1))
    train(engine, 1)
    lead.close(engine)
    with pytest.raises(InvalidInput, match="no config"):
        load(lead, tmp_path)


def test_a_base_model_that_cannot_be_read_is_refused_by_all_ranks(
    lead: Lead, double: LeadEngine, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="no config"):
        load(lead, tmp_path)
    train(double)


def test_weights_that_differ_between_ranks_are_noticed_and_the_run_is_named(
    double: LeadEngine,
) -> None:
    learn(double, {"run": (20, 9)})
    with torch.no_grad():
        double.adapters.by_run["run"].values[0] += 1e-3
    with pytest.raises(OutOfStep, match="run run"):
        double.optim_step("run", ADAM)
    double.create_adapter("run", LoraSpec(rank=4, seed=1))
    train(double)


def test_one_process_more_than_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InvalidInput, match="2 ranks need a device each, and 1"):
        Plan(size=2, device="cuda").check()
    with pytest.raises(InvalidInput, match="by fsdp or replicas or tensor, not by 'halves'"):
        Plan(size=2, sharing="halves").check()  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 5))
def test_shares_keep_the_order_and_none_is_larger_than_it_must_be(
    lengths: list[int], size: int
) -> None:
    data = [make_datum(length) for length in lengths]
    items = [Item(run="run", index=index, datum=datum) for index, datum in enumerate(data)]
    shares = cut_shares(items, size)
    assert len(shares) == size
    assert [item for share in shares for item in share] == items
    most = max(sum(item.length for item in share) for share in shares)
    assert most <= sum(lengths) / size + max(lengths)


def test_every_verb_of_an_engine_is_for_all_ranks_or_known_to_be_rank_0s_alone() -> None:
    alone = {"forward_backward", "check", "has_gradients", "drop_gradients", "probe", "runs"}
    alone |= {"save_weights", "export_weights", "shares_trained_head", "joins_experts", "see_whole"}
    alone |= {"find_weights", "measure_norm", "optim_step", "count_adapter_bytes"}
    verbs = {name for name in dir(Engine) if not name.startswith("_")} - {"load"}
    assert verbs - alone <= set(vars(LeadEngine))
