"""Mixtures of experts against plain transformers and peft, and experts of several runs at once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.training.engine.conftest import NUM_EXPERTS
from tests.training.engine.reference import (
    EXPERTS,
    load_peft,
    read_gradients,
    read_peft_gradients,
    sum_loss,
)
from tests.training.engine.rows import make_data
from tests.training.engine.test_against_peft import train_once
from training.engine import grouped
from training.engine.core import Engine
from training.engine.families import compute_plain_logits
from training.engine.lora import Slice
from training.engine.places import multiply_at_once, multiply_groups, plan_places, pull_groups
from training.types import AdamParams, ForwardBackward, ForwardBackwardOutput, LoraSpec

Stir = Callable[[Engine, str], None]


@pytest.mark.parametrize(
    "spec",
    [
        LoraSpec(rank=3, alpha=6.0, seed=3),
        LoraSpec(rank=2, train_attn=False),
        LoraSpec(rank=4, train_mlp=False, train_unembed=True, train_embed=True),
    ],
    ids=["all layers", "experts only", "without experts"],
)
def test_loss_logprobs_and_gradients_are_those_of_peft(
    mixture: Path, spec: LoraSpec, stir: Stir, tmp_path: Path
) -> None:
    engine = Engine.load(mixture)
    engine.create_adapter("run", spec)
    stir(engine, "run")
    engine.save_weights("run", tmp_path / "saved", optimizer=False)
    data = make_data(5, 17, 17, 30)
    model = load_peft(mixture, tmp_path / "saved")
    loss, logprobs = sum_loss(model, data)
    loss.backward()
    output = train_once(engine, data)
    assert output.metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-5)
    for ours, theirs in zip(output.logprobs, logprobs, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    expected, gradients = read_peft_gradients(model), read_gradients(engine, "run")
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5)


def test_runs_of_different_ranks_together_are_the_same_as_apart(mixture: Path, stir: Stir) -> None:
    engine = Engine.load(mixture)
    specs = {
        "a": LoraSpec(rank=4, train_unembed=True),
        "bb": LoraSpec(rank=1, alpha=4.0, train_attn=False),
        "ccc": LoraSpec(rank=2, train_mlp=False, train_embed=True),
    }
    requests = {
        run: ForwardBackward(data=make_data(9, 20, seed=len(run))) for run in [*specs, "dddd"]
    }
    for run, spec in {**specs, "dddd": LoraSpec(rank=3)}.items():
        engine.create_adapter(run, spec)
        stir(engine, run)
    apart = {run: engine.forward_backward({run: requests[run]})[run] for run in requests}
    gradients = {run: engine.adapters.by_run[run].gradients.clone() for run in requests}
    for run in requests:
        engine.drop_gradients(run)
    together = engine.forward_backward(requests)
    for run in requests:
        theirs, ours = apart[run], together[run]
        assert isinstance(theirs, ForwardBackwardOutput)
        assert isinstance(ours, ForwardBackwardOutput)
        assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-5)
        found = engine.adapters.by_run[run].gradients
        torch.testing.assert_close(found, gradients[run], atol=1e-5, rtol=1e-5)


def test_experts_that_no_token_chose_have_no_gradient(mixture: Path, stir: Stir) -> None:
    engine = Engine.load(mixture)
    engine.create_adapter("run", LoraSpec(rank=2, train_attn=False))
    stir(engine, "run")
    request = ForwardBackward(data=make_data(1), with_routes=True)
    output = engine.forward_backward({"run": request})["run"]
    assert isinstance(output, ForwardBackwardOutput)
    assert output.routes is not None
    (routes,) = output.routes
    place, _, _ = EXPERTS[mixture.name]
    for name, gradient in read_gradients(engine, "run").items():
        layer = int(name.partition(".layers.")[2].partition(".")[0])
        expert = int(name.partition(f"{place}.")[2].partition(".")[0])
        assert bool(gradient.any()) is (expert in routes[0, layer])


def test_saved_experts_reload_and_step_as_if_they_had_never_left(
    mixture: Path, stir: Stir, tmp_path: Path
) -> None:
    engine, data = Engine.load(mixture), make_data(12, 30)
    engine.create_adapter("run", LoraSpec(rank=2))
    stir(engine, "run")
    adam = AdamParams(learning_rate=1e-2)
    train_once(engine, data)
    engine.optim_step("run", adam)
    engine.save_weights("run", tmp_path / "saved", optimizer=True)
    _, theirs = sum_loss(load_peft(mixture, tmp_path / "saved"), data)
    ours = train_once(engine, data).logprobs
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(left, right.detach().numpy(), atol=1e-5)
    engine.optim_step("run", adam)
    other = Engine.load(mixture)
    other.load_weights("run", tmp_path / "saved", optimizer=True)
    train_once(other, data)
    other.optim_step("run", adam)
    assert torch.equal(other.adapters.by_run["run"].values, engine.adapters.by_run["run"].values)


def test_a_run_alone_repeats_to_the_bit(mixture: Path, stir: Stir) -> None:
    engine, data = Engine.load(mixture), make_data(12, 30)
    engine.create_adapter("run", LoraSpec(rank=2, train_embed=True))
    stir(engine, "run")
    gradients = []
    for _ in range(2):
        train_once(engine, data)
        gradients.append(engine.adapters.by_run["run"].gradients.clone())
        engine.drop_gradients("run")
    assert torch.equal(*gradients)


def test_a_mixture_without_adapters_computes_what_transformers_does(mixture: Path) -> None:
    engine = Engine.load(mixture)
    plain = AutoModelForCausalLM.from_pretrained(mixture, dtype=torch.float32)
    ids = torch.arange(40)[None] * 7 % 97
    with torch.no_grad():
        ours, theirs = compute_plain_logits(engine.model, ids[0]), plain(input_ids=ids).logits[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_grouped_product_of_a_gpu_is_that_of_one_expert_after_another() -> None:
    torch.manual_seed(0)
    ids_NK = torch.tensor([[0, 3], [3, 1], [0, 1], [3, 0]])
    plan = plan_places(ids_NK, [Slice("one", 0, 1), Slice("two", 2, 4)], NUM_EXPERTS)
    assert plan.spans == [(0, 0, 3), (1, 3, 5), (3, 5, 8)]  # nobody chose expert 2
    assert plan.pieces == [
        (0, "one", 0, 1),
        (0, "two", 1, 3),
        (1, "two", 4, 5),
        (3, "one", 5, 6),
        (3, "two", 7, 8),
    ]
    rows_SI, weight_EOI = torch.randn(8, 16), torch.randn(NUM_EXPERTS, 24, 16)
    grad_SO = torch.randn(8, 24)
    torch.testing.assert_close(
        multiply_at_once(rows_SI, weight_EOI.mT, plan), multiply_groups(rows_SI, weight_EOI, plan)
    )
    torch.testing.assert_close(
        multiply_at_once(grad_SO, weight_EOI, plan), pull_groups(grad_SO, weight_EOI, plan)
    )


def test_adapters_of_experts_by_grouped_products_are_those_piece_by_piece(
    mixture: Path, stir: Stir, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine.load(mixture)
    specs = {"a": LoraSpec(rank=4), "bb": LoraSpec(rank=17, alpha=8.0, train_attn=False)}
    requests = {run: ForwardBackward(data=make_data(9, 20, seed=len(run))) for run in specs}
    for run, spec in specs.items():
        engine.create_adapter(run, spec)
        stir(engine, run)
    losses, gradients = [], []
    for has_kernel in (False, True):
        monkeypatch.setattr(grouped, "is_suited", lambda _, active, on=has_kernel: on and active)
        outputs = engine.forward_backward(requests)
        for run, output in outputs.items():
            assert isinstance(output, ForwardBackwardOutput)
            losses.append(output.metrics["loss:sum"])
            gradients.append(engine.adapters.by_run[run].gradients.clone())
            engine.drop_gradients(run)
    assert losses[2:] == pytest.approx(losses[:2], rel=1e-5)
    for ours, theirs in zip(gradients[2:], gradients[:2], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
