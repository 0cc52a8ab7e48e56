"""Full-parameter runs against a bare torch loop: the same model, torch's own AdamW."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.training.engine.rows import make_data, make_datum
from training.engine.core import Engine
from training.engine.full import FullWeights
from training.errors import InvalidInput
from training.types import (
    AdamParams,
    Datum,
    DimuonParams,
    ForwardBackward,
    ForwardBackwardOutput,
    LoraSpec,
)

FULL = LoraSpec(rank=0)
# A larger eps than the default: Adam divides tiny gradients by their own size, which makes rounding
# errors of either side as large as steps.
ADAM = AdamParams(learning_rate=1e-3, eps=1e-4, weight_decay=0.1, grad_clip_norm=1.0)


def load_full(path: Path, **settings: object) -> Engine:
    engine = Engine.load(path, **settings)  # type: ignore[arg-type]
    engine.create_adapter("run", FULL)
    return engine


def load_plainly(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    model.train(False)
    return model


def sum_loss(model: PreTrainedModel, data: Sequence[Datum]) -> torch.Tensor:
    """One sequence at a time, the whole vocabulary, no packing: nothing of ours."""
    total = torch.zeros(())
    for datum in data:
        logits = model(input_ids=torch.from_numpy(datum.tokens)[None]).logits[0].float()
        targets = torch.from_numpy(datum.inputs["target_tokens"])
        chosen = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
        total = total - (chosen * torch.from_numpy(datum.inputs["weights"])).sum()
    return total


def train(engine: Engine, data: Sequence[Datum], **settings: object) -> ForwardBackwardOutput:
    request = ForwardBackward(data=data, **settings)  # type: ignore[arg-type]
    output = engine.forward_backward({"run": request})["run"]
    assert isinstance(output, ForwardBackwardOutput)
    return output


def find_full(engine: Engine) -> FullWeights:
    weights = engine.find_weights("run")
    assert isinstance(weights, FullWeights)
    return weights


def read_gradients(engine: Engine) -> dict[str, torch.Tensor]:
    weights = find_full(engine)
    return weights.view(weights.gradients)


@pytest.mark.parametrize("recompute", [False, True])
def test_loss_and_gradients_are_those_of_torch(model_path: Path, recompute: bool) -> None:
    engine = load_full(model_path, recompute=recompute)
    data = make_data(5, 17, 17, 30, vocab_size=engine.vocab_size)
    model = load_plainly(model_path)
    loss = sum_loss(model, data)
    loss.backward()
    assert train(engine, data).metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-5)
    gradients = read_gradients(engine)
    theirs = {name: each.grad for name, each in model.named_parameters()}
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-5, rtol=1e-4)


def test_weights_after_three_steps_are_those_of_torch(model_path: Path) -> None:
    engine = load_full(model_path)
    data = make_data(9, 21, 33, vocab_size=engine.vocab_size)
    model = load_plainly(model_path)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.1
    )
    for _ in range(3):
        loss = sum_loss(model, data)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert train(engine, data).metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-5)
        metrics = engine.optim_step("run", ADAM).metrics
        assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    ours = find_full(engine).tensors
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.detach(), atol=1e-5, rtol=1e-4)


def run_twice(path: Path, **settings: object) -> list[torch.Tensor]:
    """The weights after three steps of two parts each, from two engines."""
    found = []
    for _ in range(2):
        engine = load_full(path, token_budget=40, **settings)
        for step in range(3):
            for part in range(2):
                train(engine, make_data(9, 21, 30, vocab_size=engine.vocab_size, seed=step + part))
            engine.optim_step("run", ADAM)
        found.append(find_full(engine).values)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_is_reproducible_to_the_bit(model_path: Path, dtype: torch.dtype) -> None:
    first, second = run_twice(model_path, dtype=dtype)
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", [FULL, LoraSpec(rank=4, seed=1, train_unembed=True)])
def test_recomputed_activations_change_no_bit(
    random_paths: dict[str, Path], spec: LoraSpec, dtype: torch.dtype
) -> None:
    found = []
    for recompute in (False, True):
        engine = Engine.load(random_paths["qwen3"], dtype=dtype, recompute=recompute)
        engine.create_adapter("run", spec)
        output = train(engine, make_data(9, 21, 30))
        engine.optim_step("run", ADAM)
        output = train(engine, make_data(9, 21, 30))
        gradients = engine.find_weights("run").gradients
        found.append((np.concatenate(output.logprobs), gradients.numpy()))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_recomputation_keeps_fewer_activations(tiny_path: Path) -> None:
    kept = []
    for recompute in (False, True):
        engine = load_full(tiny_path, recompute=recompute)
        sizes: list[int] = []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            train(engine, make_data(400, vocab_size=engine.vocab_size))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


def test_many_forward_backwards_sum_as_one(model_path: Path) -> None:
    engine = load_full(model_path)
    data = make_data(9, 21, 30, vocab_size=engine.vocab_size)
    train(engine, data)
    together = find_full(engine).gradients.clone()
    engine.drop_gradients("run")
    assert not engine.has_gradients("run")
    for datum in data:
        train(engine, [datum])
    assert engine.has_gradients("run")
    torch.testing.assert_close(find_full(engine).gradients, together, atol=1e-5, rtol=1e-4)


def test_weights_in_float32_are_the_models_own(model_path: Path) -> None:
    engine = load_full(model_path)
    begin = find_full(engine).values.data_ptr()
    end = begin + 4 * find_full(engine).values.numel()
    assert all(begin <= each.data_ptr() < end for each in engine.model.parameters())


def test_everything_trains_and_tied_weights_are_one(model_path: Path) -> None:
    engine = load_full(model_path)
    before = {name: each.clone() for name, each in find_full(engine).tensors.items()}
    everything = np.arange(engine.vocab_size)
    rows = [everything[start : start + 48] for start in range(0, engine.vocab_size, 48)]
    data = [Datum(tokens=row, inputs={"target_tokens": row[::-1].copy()}) for row in rows]
    train(engine, data)
    engine.optim_step("run", ADAM)
    for name, tensor in find_full(engine).tensors.items():
        assert not torch.equal(tensor, before[name]), name
    assert find_full(engine).num_parameters == engine.model.num_parameters()


class Reference:
    """AdamW on a float32 master by hand, for a model in bfloat16; no code of ours."""

    def __init__(self, path: Path) -> None:
        self.model = load_plainly(path, torch.bfloat16)
        self.master = {name: each.float() for name, each in load_plainly(path).named_parameters()}
        self.moments = {
            name: (torch.zeros_like(each), torch.zeros_like(each))
            for name, each in self.master.items()
        }

    @torch.no_grad()
    def step(self, gradients: dict[str, torch.Tensor], number: int, params: AdamParams) -> None:
        for name, parameter in self.model.named_parameters():
            gradient, (mean, square) = gradients[name], self.moments[name]
            mean.mul_(params.beta1).add_((1 - params.beta1) * gradient)
            square.mul_(params.beta2).add_((1 - params.beta2) * gradient**2)
            mean_hat = mean / (1 - params.beta1**number)
            square_hat = square / (1 - params.beta2**number)
            master = self.master[name]
            master -= params.learning_rate * params.weight_decay * master
            master -= params.learning_rate * mean_hat / (square_hat.sqrt() + params.eps)
            parameter.copy_(master.to(torch.bfloat16))


def test_bfloat16_trains_a_float32_master_that_small_steps_do_not_vanish_in(
    random_paths: dict[str, Path],
) -> None:
    """Steps are too small for bfloat16 to hold, and their sum is not lost."""
    engine = load_full(random_paths["llama"], dtype=torch.bfloat16)
    reference = Reference(random_paths["llama"])
    params = AdamParams(learning_rate=1e-5, eps=1e-4, weight_decay=0.1)
    data = make_data(9, 21, 33)
    before = find_full(engine).values.clone()
    for number in range(1, 4):
        train(engine, data)
        gradients = {name: each.clone() for name, each in read_gradients(engine).items()}
        loss = sum_loss(reference.model, data)
        theirs = torch.autograd.grad(loss, list(reference.model.parameters()))
        for (name, _), gradient in zip(reference.model.named_parameters(), theirs, strict=True):
            error = (gradients[name] - gradient.float()).norm() / gradient.float().norm()
            assert error < 0.03, name
        engine.optim_step("run", params)
        reference.step(gradients, number, params)
    for name, tensor in find_full(engine).tensors.items():
        torch.testing.assert_close(tensor, reference.master[name], atol=1e-7, rtol=1e-6)
    working = dict(engine.model.named_parameters())
    for name, parameter in working.items():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter.detach(), find_full(engine).tensors[name].to(torch.bfloat16))
    moved = (find_full(engine).values - before).abs()
    assert (moved > 0).float().mean() > 0.9


def test_a_step_on_gradients_that_are_not_finite_is_refused_and_changes_nothing(
    engine_of_full: Engine,
) -> None:
    engine = engine_of_full
    train(engine, make_data(9, 21))
    engine.optim_step("run", ADAM)
    before, logprobs = find_full(engine).values.clone(), train(engine, make_data(9)).logprobs[0]
    find_full(engine).gradients[5] = float("nan")
    with pytest.raises(InvalidInput, match="gradients are not finite"):
        engine.optim_step("run", ADAM)
    assert torch.equal(find_full(engine).values, before)
    assert not engine.has_gradients("run")
    np.testing.assert_array_equal(train(engine, make_data(9)).logprobs[0], logprobs)


@pytest.fixture
def engine_of_full(random_paths: dict[str, Path]) -> Engine:
    return load_full(random_paths["qwen3"], dtype=torch.bfloat16)


def test_a_forward_only_leaves_no_gradient(engine_of_full: Engine) -> None:
    train(engine_of_full, make_data(9, 21), forward_only=True)
    assert not find_full(engine_of_full).gradients.any()
    assert not engine_of_full.has_gradients("run")


def test_several_targets_a_position_train_as_in_torch(random_paths: dict[str, Path]) -> None:
    engine, model = load_full(random_paths["qwen3"]), load_plainly(random_paths["qwen3"])
    random = np.random.default_rng(0)
    targets = random.integers(0, engine.vocab_size, (20, 3))
    weights = random.uniform(0.1, 1, (20, 3)).astype(np.float32)
    tokens = make_datum(20).tokens
    datum = Datum(tokens=tokens, inputs={"target_tokens": targets, "weights": weights})
    train(engine, [datum])
    logprobs = model(input_ids=torch.from_numpy(tokens)[None]).logits[0].log_softmax(-1)
    chosen = logprobs.gather(1, torch.from_numpy(targets))
    (-(chosen * torch.from_numpy(weights)).sum()).backward()
    gradients = read_gradients(engine)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_flops_count_the_gradients_of_weights(random_paths: dict[str, Path]) -> None:
    engine = load_full(random_paths["llama"])
    train(engine, make_data(8))
    assert engine.flops == 6 * engine.num_parameters * 8
    train(engine, make_data(8), forward_only=True)
    assert engine.flops == 8 * engine.num_parameters * 8


def test_a_full_parameter_run_shares_its_engine_with_nobody(engine: Engine) -> None:
    with pytest.raises(InvalidInput, match="this engine holds run already"):
        engine.create_adapter("full", FULL)
    assert engine.runs == ("run",)
    engine.create_adapter("run", FULL)  # the same run, made again
    assert engine.runs == ("run",)
    for spec in (FULL, LoraSpec(rank=4)):
        with pytest.raises(InvalidInput, match="has the whole model for itself"):
            engine.create_adapter("other", spec)
    with pytest.raises(InvalidInput, match="'other' has no weights here"):
        engine.probe("other")


def test_an_engine_ends_with_its_full_parameter_run(engine_of_full: Engine) -> None:
    engine_of_full.drop("other")
    assert engine_of_full.runs == ("run",)
    engine_of_full.drop("run")
    assert not engine_of_full.runs
    for spec in (FULL, LoraSpec(rank=4)):
        with pytest.raises(InvalidInput, match="load the base model again"):
            engine_of_full.create_adapter("next", spec)


def test_a_run_that_is_made_again_begins_with_the_base(engine_of_full: Engine) -> None:
    before = find_full(engine_of_full).values.clone()
    train(engine_of_full, make_data(9, 21))
    engine_of_full.optim_step("run", ADAM)
    train(engine_of_full, make_data(9, 21))
    engine_of_full.create_adapter("run", FULL)
    assert torch.equal(find_full(engine_of_full).values, before)
    assert not find_full(engine_of_full).gradients.any()
    assert engine_of_full.optimizers["run"].num_steps == 0


def test_dimuon_is_for_adapters(random_paths: dict[str, Path]) -> None:
    engine = Engine.load(random_paths["llama"])
    with pytest.raises(InvalidInput, match="a full-parameter run's optimizer is adamw"):
        engine.create_adapter("run", FULL, "dimuon")
    engine.create_adapter("run", FULL)
    with pytest.raises(InvalidInput, match="this run's optimizer is adamw"):
        engine.optim_step("run", DimuonParams(learning_rate=0.01))
