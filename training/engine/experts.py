"""LoRA on the experts of a mixture, for any number of runs in one pass.

Every expert's gate, up and down projection has an A and a B of its own, with the run's rank and
scale, under the names that the experts have in the base model's files (`experts.3.up_proj.lora_A`).
That is what PEFT trained when experts were modules, what it still loads into the fused parameters
of today, what vLLM takes for its fused kernel unless it is told otherwise, and what the 3-D tensors
of Tinker's downloads hold in one piece. Of the two other forms, PEFT's `target_parameters` has one
A for gate and up together, and vLLM reads it behind a flag only; Tinker shares the factors on the
hidden side among all experts, which neither PEFT nor vLLM can be told. Both are special cases of
this one. The router is not trained, and no loss balances its load: Tinker's losses have none.

A run's buffers hold all its experts, as they hold all its layers. An expert that no token chose
has a gradient of zero, as in PEFT; what is computed and kept for a backward is the chosen ones'.

Shapes: N rows (tokens, flattened), K experts chosen for each, S = N * K places sorted by expert,
E experts, H hidden size, I inputs and O outputs of a projection.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from training.engine.lora import (
    Active,
    Adapted,
    Block,
    Route,
    Slice,
    add_gradients,
    add_low_rank,
    name_tensors,
)
from training.engine.products import multiply, pull_back
from training.engine.routes import Routing

# Where the experts of a layer stand in the base model's files, and their projections' names there.
NAMES = {
    "Qwen3MoeExperts": ("mlp.experts", ("gate_proj", "up_proj", "down_proj")),
    "MixtralExperts": ("block_sparse_moe.experts", ("w1", "w3", "w2")),
}
# In Tinker's downloads, where all experts of a layer are one tensor. It offers no Mixtral.
JOINED_NAMES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """The places sorted by expert, and one expert's by token: so a run's lie together there."""

    num_chosen: int
    order: torch.Tensor  # (S,): which place each sorted one was
    back: torch.Tensor  # (S,): where each place has gone
    ends: torch.Tensor  # (E,), int32
    spans: Sequence[tuple[int, int, int]]  # expert, start, stop: of those that were chosen
    pieces: Sequence[tuple[int, str, int, int]]  # expert, run, start, stop


@dataclass(frozen=True, slots=True)
class Share:
    """Adapters that add to some columns of a product."""

    columns: slice
    active: Active


class LoraStack(Adapted):
    """One projection of all experts of a layer, as far as adapters are concerned."""

    def __init__(self, route: Route, shape: tuple[int, int, int]) -> None:
        super().__init__(route)
        self.num_experts, self.outputs, self.inputs = shape

    def name_blocks(self, name: str, rank: int) -> tuple[Block, Block]:
        prefix, _, projection = name.rpartition(".")
        names = [name_tensors(f"{prefix}.{e}.{projection}") for e in range(self.num_experts)]
        return (
            Block(names=tuple(a for a, _ in names), shape=(rank, self.inputs), is_stack=True),
            Block(names=tuple(b for _, b in names), shape=(self.outputs, rank), is_stack=True),
        )

    def find_pieces(self, plan: Plan) -> Active:
        return tuple(
            (start, stop, self.pairs[run].parts[expert])
            for expert, run, start, stop in plan.pieces
            if run in self.pairs
        )


class LoraExperts(nn.Module):
    """In the place of transformers' experts: the same weights, every run's adapters beside them."""

    def __init__(self, experts: nn.Module, route: Route) -> None:
        super().__init__()
        self.route = route
        assert isinstance(experts.gate_up_proj, nn.Parameter)
        assert isinstance(experts.down_proj, nn.Parameter)
        self.gate_up_proj, self.down_proj = experts.gate_up_proj, experts.down_proj
        assert isinstance(experts.act_fn, nn.Module)
        self.act_fn = experts.act_fn
        num_experts, hidden, self.width = self.down_proj.shape
        gate, up, down = (
            LoraStack(route, shape)
            for shape in (
                (num_experts, self.width, hidden),
                (num_experts, self.width, hidden),
                (num_experts, hidden, self.width),
            )
        )
        # Not a ModuleList: they have no weights, and the model's names stay as they are.
        self.stacks = (gate, up, down)

    def forward(
        self, hidden_NH: torch.Tensor, ids_NK: torch.Tensor, weights_NK: torch.Tensor
    ) -> torch.Tensor:
        plan = plan_places(ids_NK, self.route.slices, len(self.down_proj))
        gate, up, down = (stack.find_pieces(plan) for stack in self.stacks)
        rows_SH = spread(hidden_NH, plan.order, plan.back, plan.num_chosen)
        halves = (
            Share(slice(0, self.width), gate),
            Share(slice(self.width, 2 * self.width), up),
        )
        both_SO = project_places(rows_SH, self.gate_up_proj, plan, halves)
        inner_SI = self.act_fn(both_SO[:, : self.width]) * both_SO[:, self.width :]
        whole = (Share(slice(None), down),)
        sorted_SH = project_places(inner_SI, self.down_proj, plan, whole)
        out_SH = spread(sorted_SH, plan.back, plan.order, 1)
        out_NKH = out_SH.view(*ids_NK.shape, -1) * weights_NK.unsqueeze(-1)
        out_NH: torch.Tensor = out_NKH.sum(dim=1).to(hidden_NH.dtype)
        return out_NH


def name_stacks(name: str, experts: nn.Module) -> tuple[str, ...]:
    """The names, as in the base model's files, of the projections of the experts at `name`."""
    place, projections = NAMES[type(experts).__name__]
    prefix = name.removesuffix("mlp.experts") + place
    return tuple(f"{prefix}.{projection}" for projection in projections)


def count_idle(model: nn.Module, routing: Routing | None) -> int:
    """Weights of experts that a token does not meet."""
    if routing is None:
        return 0
    experts = [module for module in model.modules() if isinstance(module, LoraExperts)]
    total = sum(weight.numel() for module in experts for weight in module.parameters())
    return total * (routing.num_experts - routing.num_chosen) // routing.num_experts


def name_joined(name: str) -> tuple[str, str] | None:
    """Of a projection's A and B in a Tinker download. None: it says nothing of such a layer."""
    prefix, _, projection = name.rpartition(".")
    joined = JOINED_NAMES.get(projection)
    return None if joined is None else name_tensors(f"{prefix}.{joined}")


def plan_places(ids_NK: torch.Tensor, slices: Sequence[Slice], num_experts: int) -> Plan:
    """Zone 2 i + 1 of the rows is slice i; those between and around the slices are nobody's."""
    num_rows, num_chosen = ids_NK.shape
    edges = torch.tensor(
        [edge for each in slices for edge in (each.start, each.stop)], device=ids_NK.device
    )
    num_zones = len(edges) + 1
    rows_N = torch.arange(num_rows, device=ids_NK.device)
    zones_N = torch.bucketize(rows_N, edges, right=True)
    keys_S = (ids_NK * num_zones + zones_N.unsqueeze(1)).flatten()
    order_S = keys_S.argsort(stable=True)
    back_S = torch.empty_like(order_S)
    back_S[order_S] = torch.arange(len(order_S), device=order_S.device)
    counts_EZ = keys_S.bincount(minlength=num_experts * num_zones).view(num_experts, -1)
    spans, pieces, start = [], [], 0
    for expert, counts in enumerate(counts_EZ.tolist()):
        first = start
        for zone, count in enumerate(counts):
            if count and zone % 2:
                pieces.append((expert, slices[zone // 2].run, start, start + count))
            start += count
        if start > first:
            spans.append((expert, first, start))
    return Plan(
        num_chosen=num_chosen,
        order=order_S,
        back=back_S,
        ends=counts_EZ.sum(dim=1).cumsum(dim=0).to(torch.int32),
        spans=spans,
        pieces=pieces,
    )


def spread(
    rows_NH: torch.Tensor, order_S: torch.Tensor, back_S: torch.Tensor, count: int
) -> torch.Tensor:
    """Each row to its `count` places."""
    return _Spread.apply(rows_NH, order_S, back_S, count)  # type: ignore[no-any-return,no-untyped-call]


class _Spread(torch.autograd.Function):
    """Row `order // count` to each place. Its gradient sums `count` places a row, always in the
    same order, where PyTorch's own adds them as they come."""

    @staticmethod
    def forward(
        ctx: Any, rows_NH: torch.Tensor, order_S: torch.Tensor, back_S: torch.Tensor, count: int
    ) -> torch.Tensor:
        ctx.save_for_backward(back_S)
        ctx.count = count
        return rows_NH[order_S // count]

    @staticmethod
    def backward(ctx: Any, grad_SH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (back_S,) = ctx.saved_tensors
        grad_NKH = grad_SH[back_S].view(-1, ctx.count, grad_SH.shape[1])
        return grad_NKH.sum(dim=1), None, None, None


def project_places(
    rows_SI: torch.Tensor, weight_EOI: torch.Tensor, plan: Plan, shares: Sequence[Share]
) -> torch.Tensor:
    if not torch.is_grad_enabled():
        return compute_places(rows_SI, weight_EOI, plan, shares)[0]
    pairs = [pair for share in shares for *_, pair in share.active]
    leaves = [leaf for pair in pairs for leaf in (pair.a, pair.b)]
    return _GroupedLinear.apply(rows_SI, weight_EOI, plan, shares, *leaves)  # type: ignore[no-any-return,no-untyped-call]


def compute_places(
    rows_SI: torch.Tensor, weight_EOI: torch.Tensor, plan: Plan, shares: Sequence[Share]
) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
    """The products, and the rows times A of every piece, which the backward needs again."""
    out_SO = multiply_groups(rows_SI, weight_EOI, plan)
    return out_SO, [
        add_low_rank(out_SO[:, share.columns], rows_SI, share.active) for share in shares
    ]


def multiply_groups(rows_SI: torch.Tensor, weight_EOI: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Each place's row times its own expert's weights."""
    if rows_SI.is_cuda:
        return multiply_at_once(rows_SI, weight_EOI.mT, plan)
    out_SO = rows_SI.new_empty(len(rows_SI), weight_EOI.shape[1])
    for expert, start, stop in plan.spans:
        out_SO[start:stop] = multiply(rows_SI[start:stop], weight_EOI[expert])
    return out_SO


def pull_groups(grad_SO: torch.Tensor, weight_EOI: torch.Tensor, plan: Plan) -> torch.Tensor:
    if grad_SO.is_cuda:
        return multiply_at_once(grad_SO, weight_EOI, plan)
    grad_SI = grad_SO.new_empty(len(grad_SO), weight_EOI.shape[2])
    for expert, start, stop in plan.spans:
        grad_SI[start:stop] = pull_back(grad_SO[start:stop], weight_EOI[expert])
    return grad_SI


def multiply_at_once(left_SI: torch.Tensor, right_EIO: torch.Tensor, plan: Plan) -> torch.Tensor:
    """The grouped product, which a GPU does in one kernel."""
    return nn.functional.grouped_mm(left_SI.contiguous(), right_EIO, offs=plan.ends)


class _GroupedLinear(torch.autograd.Function):
    """x W[e]' + scale (x A[e]') B[e]' for each piece; leaves are arguments to be seen by autograd.

    The weights have a gradient too, where a full-parameter run trains them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows_SI: torch.Tensor,
        weight_EOI: torch.Tensor,
        plan: Plan,
        shares: Sequence[Share],
        *leaves: torch.Tensor,
    ) -> torch.Tensor:
        out_SO, lows = compute_places(rows_SI, weight_EOI, plan, shares)
        ctx.plan, ctx.shares, ctx.lows, ctx.num_leaves = plan, shares, lows, len(leaves)
        is_needed = weight_EOI.requires_grad or any(share.active for share in shares)
        ctx.save_for_backward(rows_SI if is_needed else None, weight_EOI)
        return out_SO

    @staticmethod
    def backward(ctx: Any, grad_SO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows_SI, weight_EOI = ctx.saved_tensors
        grad_SI = pull_groups(grad_SO, weight_EOI, ctx.plan) if ctx.needs_input_grad[0] else None
        for share, lows in zip(ctx.shares, ctx.lows, strict=True):
            share_SO = grad_SO[:, share.columns]
            for (start, stop, pair), low_NR in zip(share.active, lows, strict=True):
                grad_low_NR = add_gradients(pair, rows_SI[start:stop], low_NR, share_SO[start:stop])
                if grad_SI is not None:
                    a_RI = pair.a.to(grad_SI.dtype)
                    grad_SI[start:stop].addmm_(grad_low_NR, a_RI, alpha=pair.scale)
        grad_EOI = None
        if ctx.needs_input_grad[1]:
            grad_EOI = sum_groups(grad_SO, rows_SI, weight_EOI, ctx.plan)
        return (grad_SI, grad_EOI, None, None, *[None] * ctx.num_leaves)


def sum_groups(
    grad_SO: torch.Tensor, rows_SI: torch.Tensor, weight_EOI: torch.Tensor, plan: Plan
) -> torch.Tensor:
    """The gradient by the weights themselves."""
    grad_EOI = torch.zeros_like(weight_EOI)
    for expert, start, stop in plan.spans:
        grad_EOI[expert] = multiply(grad_SO[start:stop].T, rows_SI[start:stop].T)
    return grad_EOI
