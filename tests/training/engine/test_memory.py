"""What a step takes is what was said before it: counted tensor by tensor, so it cannot vary."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from tests.training.engine.allocations import Allocations, count_allocations
from tests.training.engine.shapes import FAMILIES, save_model
from training.engine import tenancy
from training.engine.core import Engine
from training.engine.gated import thin_out
from training.memory import Memory
from training.shapes import ModelShape
from training.types import AdamParams, Datum, ForwardBackward, LoraSpec

SPECS = {
    "rank 4": LoraSpec(rank=4),
    "rank 64": LoraSpec(rank=64),
    "with the head": LoraSpec(rank=8, train_unembed=True),
    "with the embedding": LoraSpec(rank=8, train_embed=True),
    "attention only": LoraSpec(rank=8, train_mlp=False),
    "MLP only": LoraSpec(rank=8, train_attn=False),
}
BATCHES = {"one long row": [512], "many short rows": [64] * 8, "a large batch": [500] * 8}


def make_request(lengths: list[int], num_words: int = 90) -> ForwardBackward:
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, num_words, length + 1) for length in lengths]
    return ForwardBackward(
        data=[Datum(tokens=row[:-1], inputs={"target_tokens": row[1:]}) for row in rows]
    )


def measure(engine: Engine, spec: LoraSpec, lengths: list[int]) -> Allocations:
    """A whole run's, its weights and the optimizer's included; not the base model's."""
    request = make_request(lengths)

    def train() -> None:
        engine.create_adapter("run", spec)
        engine.forward_backward({"run": request})
        engine.optim_step("run", AdamParams())
        engine.drop("run")

    return count_allocations(train)


@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_peak_of_a_step_is_what_was_predicted(
    tiny_path: Path, spec: LoraSpec, lengths: list[int]
) -> None:
    predicted = Memory(shape=ModelShape.read(tiny_path), spec=spec).predict(sum(lengths))
    measured = measure(Engine.load(tiny_path), spec, lengths).peak
    assert measured == pytest.approx(predicted.total - predicted.weights - predicted.slack, rel=0.1)


def test_norms_of_heads_are_counted(random_paths: dict[str, Path]) -> None:
    shape, spec = ModelShape.read(random_paths["qwen3"]), LoraSpec(rank=4)
    predicted = Memory(shape=shape, spec=spec).predict(64 * 16)
    measured = measure(Engine.load(random_paths["qwen3"]), spec, [64] * 16).peak
    assert measured == pytest.approx(predicted.total - predicted.weights - predicted.slack, rel=0.1)


@pytest.mark.parametrize("name", ["rank 4", "rank 64", "attention only", "MLP only"])
def test_a_mixture_takes_what_a_tokens_experts_take(tmp_path: Path, name: str) -> None:
    config = Qwen3MoeConfig(
        vocab_size=512,
        hidden_size=128,
        moe_intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=16,
        num_experts_per_tok=4,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    predicted = Memory(shape=ModelShape.read(tmp_path), spec=SPECS[name]).predict(500 * 4)
    measured = measure(Engine.load(tmp_path), SPECS[name], [500] * 4).peak
    assert measured == pytest.approx(predicted.total - predicted.weights - predicted.slack, rel=0.1)


def describe_error(family: str, folder: Path) -> float:
    """Of the prediction, as a share of what was measured."""
    engine, shape = Engine.load(save_model(family, folder)), ModelShape.read(folder)
    assert shape.num_parameters == pytest.approx(engine.num_parameters, rel=0.03)
    spec = LoraSpec(rank=4)
    memory = Memory(shape=shape, spec=spec)
    engine.create_adapter("run", spec)
    assert engine.adapters.by_run["run"].num_parameters == memory.num_trained
    request = make_request([100] * 8)
    measured = count_allocations(lambda: engine.forward_backward({"run": request})).peak
    predicted = memory.predict(800)
    return (predicted.activations + predicted.logprobs + predicted.workspace) / measured - 1


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"gemma-2"}))
def test_every_family_takes_what_is_told_from_its_config(family: str, tmp_path: Path) -> None:
    assert abs(describe_error(family, tmp_path)) < 0.2


def test_capped_scores_are_counted_as_they_are_for_long_rows(tmp_path: Path) -> None:
    """At this size the scores of one call are nearly all there is."""
    assert -0.2 < describe_error("gemma-2", tmp_path) < 3


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("rank", [0, 8])
def test_all_weights_and_activations_that_are_made_twice_are_predicted(
    tiny_path: Path, rank: int, recompute: bool
) -> None:
    spec, engine = LoraSpec(rank=rank), Engine.load(tiny_path, recompute=recompute)
    memory = Memory(shape=ModelShape.read(tiny_path), spec=spec, is_checkpointed=recompute)
    engine.create_adapter("run", spec)
    request = make_request([500] * 4)

    def train() -> None:
        engine.forward_backward({"run": request})
        engine.optim_step("run", AdamParams())

    predicted = memory.predict(2000)
    measured = count_allocations(train).peak
    assert measured == pytest.approx(
        predicted.activations + predicted.logprobs + predicted.workspace, rel=0.1
    )


def test_two_measurements_of_a_step_are_equal(tiny_path: Path) -> None:
    engine = Engine.load(tiny_path)
    first, second = (measure(engine, LoraSpec(rank=4), [300, 200]) for _ in range(2))
    assert first == second


def test_no_tensor_is_as_large_as_tokens_times_vocabulary(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.engine.logprobs.CHUNK_BYTES", 1 << 20)
    engine = Engine.load(tiny_path)
    for spec in (LoraSpec(rank=4), LoraSpec(rank=4, train_unembed=True)):
        largest = measure(engine, spec, [500] * 4).largest
        assert largest < 4 * 2000 * engine.vocab_size / 4


def test_mlps_keep_half_as_much_and_give_the_same_bits(
    engine: Engine,
    random_paths: dict[str, Path],
    stir: Callable[[Engine, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tenancy, "thin_out", lambda _: 0)
    plain = Engine.load(random_paths["llama"])
    plain.create_adapter("run", LoraSpec(rank=4, seed=1))
    taken = []
    for each in (plain, engine):
        stir(each, "run")
        request = make_request([40, 60, 60])
        taken.append(count_allocations(lambda: each.forward_backward({"run": request})).peak)  # noqa: B023
    ours, theirs = (each.adapters.by_run["run"].gradients for each in (engine, plain))
    assert ours.equal(theirs)
    width, layers = 64, 3  # of the model
    assert taken[0] - taken[1] == pytest.approx(2 * 4 * 160 * width * layers, rel=0.1)


def test_mlps_that_are_not_trained_give_the_same_bits(
    random_paths: dict[str, Path],
    stir: Callable[[Engine, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gradients = []
    for is_thin in (True, False):
        if not is_thin:
            monkeypatch.setattr(tenancy, "thin_out", lambda _: 0)
        engine = Engine.load(random_paths["qwen3"])
        engine.create_adapter("run", LoraSpec(rank=4, train_mlp=False))
        stir(engine, "run")
        engine.forward_backward({"run": make_request([20, 30])})
        gradients.append(engine.adapters.by_run["run"].gradients)
    assert gradients[0].equal(gradients[1])


def test_every_model_of_the_tests_keeps_less(model_path: Path) -> None:
    engine = Engine.load(model_path)
    assert thin_out(engine.model) == engine.model.config.num_hidden_layers
