"""Whatever is trained together, however it is cut: each run has the numbers of a reference that
knows no packing, no other adapters, no autograd through a loss, and has twice the digits."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.training.engine.rows import make_datum
from tests.training.engine.test_losses import FORMULAS, SLOPES
from training.engine.core import Engine
from training.engine.lora import Pair
from training.types import Datum, ForwardBackward, ForwardBackwardOutput, LoraSpec

# Value and slope of one position by hand: of the learner's log-probability, q or the weight, and A.
CROSS_ENTROPY = "cross_entropy"
LOSSES = (CROSS_ENTROPY, *FORMULAS)
# Attention, MLP, head and embedding.
PARTS = [(1, 1, 0, 0), (1, 0, 0, 1), (0, 1, 1, 0), (0, 0, 1, 1), (0, 0, 0, 1), (1, 1, 1, 1)]
SHARED = 20  # tokens that datums of one run may begin with

generated = partial(settings, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A run with what it asks for. `cuts`: where its data is split into several requests."""

    spec: LoraSpec
    loss_fn: str
    lengths: tuple[int, ...]
    begins_alike: bool
    cuts: frozenset[int]
    seed: int

    def make_data(self) -> list[Datum]:
        data = [make_datum(length, seed=self.seed + place) for place, length in self._places()]
        if not self.begins_alike:
            return data
        first = make_datum(SHARED, seed=self.seed).tokens
        return [replace(datum, tokens=begin_with(first, datum.tokens)) for datum in data]

    def _places(self) -> Iterator[tuple[int, int]]:
        return enumerate(self.lengths)

    def make_requests(self, *, with_routes: bool = False) -> list[ForwardBackward]:
        data, starts = self.make_data(), sorted(self.cuts | {0})
        stops = [*starts[1:], len(data)]
        return [
            ForwardBackward(data=data[start:stop], loss_fn=self.loss_fn, with_routes=with_routes)
            for start, stop in zip(starts, stops, strict=True)
        ]


def begin_with(first: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return np.concatenate([first[: len(tokens)], tokens[len(first) :]])


@st.composite
def draw_tenant(draw: st.DrawFn) -> Tenant:
    flags = draw(st.sampled_from(PARTS))
    attn, mlp, unembed, embed = map(bool, flags)
    lengths = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=5)))
    return Tenant(
        spec=LoraSpec(
            rank=draw(st.integers(1, 9)),
            alpha=draw(st.sampled_from([1.0, 8.0, 32.0])),
            train_attn=attn,
            train_mlp=mlp,
            train_unembed=unembed,
            train_embed=embed,
        ),
        loss_fn=draw(st.sampled_from(LOSSES)),
        lengths=lengths,
        begins_alike=draw(st.booleans()),
        cuts=draw(st.frozensets(st.integers(0, len(lengths) - 1), max_size=2)),
        seed=draw(st.integers(0, 1000)),
    )


tenants = st.lists(draw_tenant(), min_size=1, max_size=4)
budgets = st.sampled_from([8, 40, 77, 4096])


def fill(engine: Engine, run: str, tenant: Tenant) -> None:
    """B of a fresh adapter is zero, and so is the gradient of A: give it values."""
    engine.create_adapter(run, tenant.spec)
    generator = torch.Generator().manual_seed(tenant.seed)
    for pair in engine.adapters.by_run[run].pairs.values():
        if not pair.a.any():  # of an embedding it is A that is zero, and B has ones
            pair.a.detach().copy_(0.1 * torch.randn(pair.a.shape, generator=generator))
        pair.b.detach().copy_(0.02 * torch.randn(pair.b.shape, generator=generator))


def train(
    engine: Engine, requests: Mapping[str, Sequence[ForwardBackward]]
) -> dict[str, list[ForwardBackwardOutput]]:
    """The first request of every run together, then the second ones, and so on."""
    outputs: dict[str, list[ForwardBackwardOutput]] = {run: [] for run in requests}
    for place in range(max(map(len, requests.values()))):
        asked = {run: each[place] for run, each in requests.items() if place < len(each)}
        for run, output in engine.forward_backward(asked).items():
            assert isinstance(output, ForwardBackwardOutput), output
            outputs[run].append(output)
    return outputs


@contextmanager
def adding(model: PreTrainedModel, pairs: Mapping[str, Pair]) -> Iterator[dict[str, torch.Tensor]]:
    """Plain transformers with x A' B' beside its linear layers, and beside its embedding B times
    the tokens' columns of A. Yields A and B by layer."""
    leaves, handles = {}, []
    for name, pair in pairs.items():
        a, b = (side.detach().double().requires_grad_() for side in (pair.a, pair.b))
        leaves[f"{name} a"], leaves[f"{name} b"] = a, b
        hook = partial(add_adapter, a, b, pair.scale)
        handles.append(model.get_submodule(name).register_forward_hook(hook))
    try:
        yield leaves
    finally:
        for handle in handles:
            handle.remove()


def add_adapter(
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    layer: nn.Module,
    inputs: tuple[torch.Tensor],
    output: torch.Tensor,
) -> torch.Tensor:
    low = a.T[inputs[0]] if isinstance(layer, nn.Embedding) else inputs[0] @ a.T
    return output + scale * (low @ b.T)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a run's data comes to, one sequence at a time, over the whole vocabulary."""

    loss: float
    size: float  # of all that the loss is summed from, whatever its sign
    logprobs: list[np.ndarray]
    gradients: dict[str, torch.Tensor]


def compute_reference(
    model: PreTrainedModel, pairs: Mapping[str, Pair], tenant: Tenant
) -> Reference:
    terms: list[float] = []
    told = []
    with adding(model, pairs) as leaves:
        for datum in tenant.make_data():
            logits = model(input_ids=torch.from_numpy(datum.tokens)[None]).logits[0]
            targets = torch.from_numpy(datum.inputs["target_tokens"])
            logprobs = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
            values, slopes = judge(tenant.loss_fn, datum, logprobs.tolist())
            (logprobs * torch.tensor(slopes)).sum().backward()
            terms += values
            told.append(logprobs.detach().numpy())
    gradients = {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
    }
    size = sum(map(abs, terms))
    return Reference(loss=sum(terms), size=size, logprobs=told, gradients=gradients)


def judge(loss_fn: str, datum: Datum, logprobs: list[float]) -> tuple[list[float], list[float]]:
    """Values and slopes position by position, by the formulas written out by hand."""
    if loss_fn == CROSS_ENTROPY:
        weights = datum.inputs["weights"].tolist()
        return [-w * lp for w, lp in zip(weights, logprobs, strict=True)], [-w for w in weights]
    sampled, advantages = (datum.inputs[name].tolist() for name in ("logprobs", "advantages"))
    rows = list(zip(logprobs, sampled, advantages, strict=True))
    return [FORMULAS[loss_fn](*row) for row in rows], [SLOPES[loss_fn](*row) for row in rows]


@pytest.fixture(scope="module")
def engine(tiny_path: Path) -> Engine:
    return Engine.load(tiny_path)


@pytest.fixture(scope="module")
def plain(tiny_path: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_path, dtype=torch.float64)
    return model.requires_grad_(False)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    """Within 1e-5, where there are numbers above 1 within 1e-5 of the largest one."""
    worst = float((ours - theirs).abs().max()) / max(1.0, float(theirs.abs().max()))
    assert worst <= 1e-5, f"{what}: off by {worst:.1e}"


@generated(max_examples=40)
@given(mix=tenants, budget=budgets)
def test_every_run_has_the_numbers_of_the_reference(
    engine: Engine, plain: PreTrainedModel, mix: list[Tenant], budget: int
) -> None:
    engine.token_budget = budget
    by_run = {f"run {place}": tenant for place, tenant in enumerate(mix)}
    for run, tenant in by_run.items():
        fill(engine, run, tenant)
    outputs = train(engine, {run: tenant.make_requests() for run, tenant in by_run.items()})
    for run, tenant in by_run.items():
        adapter = engine.adapters.by_run[run]
        expected = compute_reference(plain, adapter.pairs, tenant)
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


@generated(max_examples=15)
@given(tenant=draw_tenant(), others=tenants, budget=budgets)
def test_a_run_alone_is_the_same_bit_for_bit_whatever_came_before(
    engine: Engine, tenant: Tenant, others: list[Tenant], budget: int
) -> None:
    engine.token_budget = budget
    first = train_alone(engine, tenant)
    for place, other in enumerate(others):
        fill(engine, f"other {place}", other)
    train(engine, {f"other {place}": each.make_requests() for place, each in enumerate(others)})
    again = train_alone(engine, tenant)
    for place in range(len(others)):
        engine.drop(f"other {place}")
    assert torch.equal(first, again)


def train_alone(engine: Engine, tenant: Tenant) -> torch.Tensor:
    """Its gradients and what it was told, in one row."""
    fill(engine, "run", tenant)
    (outputs,) = train(engine, {"run": tenant.make_requests()}).values()
    told = [torch.from_numpy(values) for output in outputs for values in output.logprobs]
    row = torch.cat([engine.adapters.by_run["run"].gradients, *told])
    engine.drop("run")
    return row
