"""The engine against plain transformers and peft: losses, gradients, steps, reloaded adapters."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.training.engine.reference import (
    load_peft,
    peft_parameters,
    read_gradients,
    sum_loss,
)
from tests.training.engine.rows import make_data
from training.engine.core import Engine
from training.types import AdamParams, Datum, ForwardBackward, ForwardBackwardOutput, LoraSpec

Stir = Callable[[Engine, str], None]
SPECS = {
    "all layers": LoraSpec(rank=4, seed=3),
    "head too": LoraSpec(rank=3, alpha=6.0, train_unembed=True),
    "mlp only": LoraSpec(rank=4, train_attn=False),
    "attention only": LoraSpec(rank=8, train_mlp=False),
    "head only": LoraSpec(rank=2, train_mlp=False, train_attn=False, train_unembed=True),
    "embedding only": LoraSpec(rank=3, train_mlp=False, train_attn=False, train_embed=True),
    "head and embedding": LoraSpec(rank=4, train_mlp=False, train_unembed=True, train_embed=True),
}


def train_once(engine: Engine, data: Sequence[Datum]) -> ForwardBackwardOutput:
    output = engine.forward_backward({"run": ForwardBackward(data=data)})["run"]
    assert isinstance(output, ForwardBackwardOutput)
    return output


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_loss_logprobs_and_gradients_are_those_of_peft(
    model_path: Path, spec: LoraSpec, stir: Stir, tmp_path: Path
) -> None:
    engine = Engine.load(model_path)
    engine.create_adapter("run", spec)
    stir(engine, "run")
    engine.save_weights("run", tmp_path / "saved", optimizer=False)
    data = make_data(5, 17, 17, 30, vocab_size=engine.vocab_size)
    model = load_peft(model_path, tmp_path / "saved")
    loss, logprobs = sum_loss(model, data)
    loss.backward()
    output = train_once(engine, data)
    assert output.metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-5)
    for ours, theirs in zip(output.logprobs, logprobs, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-5)
    theirs_by_name = peft_parameters(model)
    gradients = read_gradients(engine, "run")
    assert gradients.keys() == theirs_by_name.keys()
    for name, gradient in gradients.items():
        expected = theirs_by_name[name].grad
        assert expected is not None
        # B of an embedding has ones where others have hundredths, and so has its A's gradient.
        size = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(gradient, expected, atol=1e-5 * size, rtol=1e-4)


def test_weights_after_three_adam_steps_are_those_of_peft_and_torch(
    model_path: Path, tmp_path: Path
) -> None:
    engine = Engine.load(model_path)
    engine.create_adapter("run", LoraSpec(rank=4))
    engine.save_weights("run", tmp_path / "saved", optimizer=False)
    data = make_data(9, 21, 33, vocab_size=engine.vocab_size)
    model = load_peft(model_path, tmp_path / "saved")
    parameters = peft_parameters(model)
    # A larger eps than the default: Adam divides tiny gradients by their own size, which makes
    # rounding errors of either side as large as steps.
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=1e-3, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.1
    )
    adam = AdamParams(learning_rate=1e-3, eps=1e-4, weight_decay=0.1, grad_clip_norm=1.0)
    for _ in range(3):
        loss, _ = sum_loss(model, data)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        train_once(engine, data)
        step = engine.optim_step("run", adam)
        assert step.metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    for name, tensor in engine.adapters.by_run["run"].tensors.items():
        torch.testing.assert_close(tensor, parameters[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_saved_adapter_reloaded_by_peft_gives_the_same_logprobs(
    model_path: Path, spec: LoraSpec, tmp_path: Path
) -> None:
    engine = Engine.load(model_path)
    engine.create_adapter("run", spec)
    data = make_data(12, 30, vocab_size=engine.vocab_size)
    train_once(engine, data)
    engine.optim_step("run", AdamParams(learning_rate=1e-2))
    engine.save_weights("run", tmp_path / "saved", optimizer=True)
    _, theirs = sum_loss(load_peft(model_path, tmp_path / "saved"), data)
    ours = train_once(engine, data).logprobs
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(left, right.numpy(), atol=3e-5)


def test_a_fresh_adapter_changes_nothing(tiny_path: Path) -> None:
    engine = Engine.load(tiny_path)
    engine.create_adapter("run", LoraSpec(rank=8, train_unembed=True))
    data = make_data(40, vocab_size=engine.vocab_size)
    model = AutoModelForCausalLM.from_pretrained(tiny_path, dtype=torch.float32)
    logits = model(input_ids=torch.from_numpy(data[0].tokens)[None]).logits[0]
    targets = torch.from_numpy(data[0].inputs["target_tokens"])
    plain = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    ours = train_once(engine, data).logprobs[0]
    np.testing.assert_allclose(ours, plain.detach().numpy(), atol=2e-5)
