"""Mixtures under the same test: whatever is trained together, each run has the numbers of a
reference in double precision that asks one expert after another, along the routes of the pass."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.training.engine.test_exactness import (
    Reference,
    Tenant,
    adding,
    assert_close,
    budgets,
    fill,
    generated,
    judge,
    tenants,
    train,
)
from training.engine.core import Engine
from training.engine.lora import Pair
from training.types import IntArray

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

Leaves = Mapping[str, torch.Tensor]


@pytest.fixture(scope="module")
def engine(mixtures: dict[str, Path]) -> Engine:
    return Engine.load(mixtures["qwen3_moe"])


@pytest.fixture(scope="module")
def plain(mixtures: dict[str, Path]) -> PreTrainedModel:
    path = mixtures["qwen3_moe"]
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    return model.requires_grad_(False)


def route(
    layer: int, told: list[IntArray], router: Any, hidden_NH: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Qwen's router, but for the choice."""
    logits_NE = hidden_NH @ router.weight.T
    ids_NK = torch.from_numpy(told[-1][:, layer])
    weights_NK = logits_NE.softmax(-1).gather(1, ids_NK)
    if router.norm_topk_prob:
        weights_NK = weights_NK / weights_NK.sum(-1, keepdim=True)
    return logits_NE, weights_NK, ids_NK


def ask(
    prefix: str,
    leaves: Leaves,
    scale: float,
    experts: Any,
    hidden_NH: torch.Tensor,
    ids_NK: torch.Tensor,
    weights_NK: torch.Tensor,
) -> torch.Tensor:
    total_NH = torch.zeros_like(hidden_NH)
    for expert in range(len(experts.down_proj)):
        frozen = (*experts.gate_up_proj[expert].chunk(2), experts.down_proj[expert])
        own = dict(zip(PROJECTIONS, frozen, strict=True))
        for name in PROJECTIONS:
            if f"{prefix}.{name} a" in leaves:
                a, b = (leaves[f"{prefix}.{name} {side}"][expert] for side in "ab")
                own[name] = own[name] + scale * b @ a
        rows, places = torch.where(ids_NK == expert)
        inner = nn.functional.silu(hidden_NH[rows] @ own["gate_proj"].T)
        told = (inner * (hidden_NH[rows] @ own["up_proj"].T)) @ own["down_proj"].T
        total_NH = total_NH.index_add(0, rows, told * weights_NK[rows, places, None])
    return total_NH


@contextmanager
def asking(
    model: PreTrainedModel, pairs: Mapping[str, Pair], told: list[IntArray]
) -> Iterator[Leaves]:
    """With the adapters of all layers, and each sequence's routes as the last of `told`."""
    stacks = {name: pair for name, pair in pairs.items() if ".experts." in name}
    others = {name: pair for name, pair in pairs.items() if name not in stacks}
    own = {
        f"{name} {side}": getattr(pair, side).detach().double().requires_grad_()
        for name, pair in stacks.items()
        for side in "ab"
    }
    scale = next((pair.scale for pair in stacks.values()), 0.0)
    blocks = [(name, each) for name, each in model.named_modules() if name.endswith(".mlp.experts")]
    for layer, (name, experts) in enumerate(blocks):
        router = model.get_submodule(name.removesuffix("experts") + "gate")
        router.forward = partial(route, layer, told, router)
        experts.forward = partial(ask, name, own, scale, experts)
    with adding(model, others) as leaves:
        yield {**leaves, **own}


def compute_reference(
    model: PreTrainedModel, pairs: Mapping[str, Pair], tenant: Tenant, routes: list[IntArray]
) -> Reference:
    terms: list[float] = []
    logprobs, told = [], list[IntArray]()
    with asking(model, pairs, told) as leaves:
        for datum, own in zip(tenant.make_data(), routes, strict=True):
            told.append(own)
            logits = model(input_ids=torch.from_numpy(datum.tokens)[None]).logits[0]
            targets = torch.from_numpy(datum.inputs["target_tokens"])
            chosen = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
            values, slopes = judge(tenant.loss_fn, datum, chosen.tolist())
            (chosen * torch.tensor(slopes)).sum().backward()
            terms += values
            logprobs.append(chosen.detach().numpy())
    gradients = {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
    }
    size = sum(map(abs, terms))
    return Reference(loss=sum(terms), size=size, logprobs=logprobs, gradients=gradients)


@generated(max_examples=25)
@given(mix=tenants, budget=budgets)
def test_every_run_on_a_mixture_has_the_numbers_of_the_reference(
    engine: Engine, plain: PreTrainedModel, mix: list[Tenant], budget: int
) -> None:
    engine.token_budget = budget
    by_run = {f"run {place}": tenant for place, tenant in enumerate(mix)}
    for run, tenant in by_run.items():
        fill(engine, run, tenant)
    outputs = train(
        engine, {run: tenant.make_requests(with_routes=True) for run, tenant in by_run.items()}
    )
    for run, tenant in by_run.items():
        adapter = engine.adapters.by_run[run]
        routes = [each for output in outputs[run] for each in output.routes or ()]
        expected = compute_reference(plain, adapter.pairs, tenant, routes)
        loss = sum(output.metrics["loss:sum"] for output in outputs[run])
        assert loss == pytest.approx(expected.loss, rel=1e-5, abs=1e-5 * expected.size)
        told = [logprobs for output in outputs[run] for logprobs in output.logprobs]
        for ours, theirs in zip(told, expected.logprobs, strict=True):
            assert_close(torch.from_numpy(ours), torch.from_numpy(theirs), f"{run} logprobs")
        gradients = [
            expected.gradients[f"{name} {side}"] for name in adapter.pairs for side in "ab"
        ]
        assert_close(adapter.gradients, torch.cat([each.flatten() for each in gradients]), run)
        engine.drop(run)
