"""What the experts of a layer make of the rows that were sent to them, and its gradients.

Shapes: N rows (tokens, flattened), K experts chosen for each, S = N * K places sorted by expert,
E experts, H hidden size, I inputs and O outputs of a projection.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from training.engine import grouped
from training.engine.lora import Active, Pair, Slice, add_gradients, add_low_rank
from training.engine.products import multiply, pull_back

Lows = list[list[torch.Tensor]]  # rows times A, of every share's pieces


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """The places sorted by expert, and one expert's by token: so a run's lie together there."""

    num_chosen: int
    order: torch.Tensor  # (S,): which place each sorted one was
    tokens: torch.Tensor  # (S,): whose row each sorted one is
    back: torch.Tensor  # (S,): where each place has gone
    ends: torch.Tensor  # (E,), int32
    spans: Sequence[tuple[int, int, int]]  # expert, start, stop: of those that were chosen
    pieces: Sequence[tuple[int, str, int, int]]  # expert, run, start, stop


@dataclass(frozen=True, slots=True)
class Share:
    """Adapters that add to some columns of a product."""

    columns: slice
    active: Active


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """What the experts of a layer do in one pass. `halves`: gates to the left, ups to the right."""

    plan: Plan
    act: nn.Module
    width: int
    halves: Sequence[Share]
    whole: Sequence[Share]

    @property
    def pairs(self) -> list[Pair]:
        shares = (*self.halves, *self.whole)
        return [pair for share in shares for *_, pair in share.active]


def answer_rows(
    work: Work,
    hidden_NH: torch.Tensor,
    weights_NK: torch.Tensor,
    gate_up_EOH: torch.Tensor,
    down_EHI: torch.Tensor,
) -> torch.Tensor:
    """To be differentiated, where gradients are on."""
    given = (hidden_NH, weights_NK, gate_up_EOH, down_EHI)
    if not torch.is_grad_enabled():
        return ask_experts(work, *given)[0]
    leaves = [leaf for pair in work.pairs for leaf in (pair.a, pair.b)]
    return _Experts.apply(work, *given, *leaves)  # type: ignore[no-any-return,no-untyped-call]


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
        tokens=order_S // num_chosen,
        back=back_S,
        ends=counts_EZ.sum(dim=1).cumsum(dim=0).to(torch.int32),
        spans=spans,
        pieces=pieces,
    )


def ask_experts(
    work: Work,
    hidden_NH: torch.Tensor,
    weights_NK: torch.Tensor,
    gate_up_EOH: torch.Tensor,
    down_EHI: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, tuple[Lows, Lows]]:
    """What the experts make of the rows; and for the backward, what gates and ups do, and the lows
    of halves and whole."""
    plan = work.plan
    both_SO, half_lows = compute_places(hidden_NH[plan.tokens], gate_up_EOH, plan, work.halves)
    inner_SI = work.act(both_SO[:, : work.width]) * both_SO[:, work.width :]
    weighted_SI = weigh(inner_SI, weights_NK, plan)
    places_SH, whole_lows = compute_places(weighted_SI, down_EHI, plan, work.whole)
    return sum_places(places_SH, plan), both_SO, (half_lows, whole_lows)


def weigh(inner_SI: torch.Tensor, weights_NK: torch.Tensor, plan: Plan) -> torch.Tensor:
    """By what the router thinks of each expert for each row."""
    return (inner_SI * weights_NK.flatten()[plan.order].unsqueeze(1)).to(inner_SI.dtype)


def sum_places(places_SH: torch.Tensor, plan: Plan) -> torch.Tensor:
    """All places of a row, always in the same order."""
    return places_SH[plan.back].view(-1, plan.num_chosen, places_SH.shape[1]).sum(dim=1)


def compute_places(
    rows_SI: torch.Tensor, weight_EOI: torch.Tensor, plan: Plan, shares: Sequence[Share]
) -> tuple[torch.Tensor, Lows]:
    """The products, and the rows times A of every piece, which the backward needs again."""
    out_SO = multiply_groups(rows_SI, weight_EOI, plan)
    return out_SO, [add_share(out_SO[:, share.columns], rows_SI, share.active) for share in shares]


def add_share(out_SO: torch.Tensor, rows_SI: torch.Tensor, active: Active) -> list[torch.Tensor]:
    """In place, what adapters add; returns rows times A, of all pieces together where they go
    through one grouped product."""
    if grouped.is_suited(rows_SI, active):
        return [grouped.add_low_rank(out_SO, rows_SI, active)]
    return add_low_rank(out_SO, rows_SI, active)


def multiply_groups(rows_SI: torch.Tensor, weight_EOI: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Each place's row times its own expert's weights."""
    if can_group(weight_EOI):
        return multiply_at_once(rows_SI, weight_EOI.mT, plan)
    out_SO = rows_SI.new_empty(len(rows_SI), weight_EOI.shape[1])
    for expert, start, stop in plan.spans:
        out_SO[start:stop] = multiply(rows_SI[start:stop], weight_EOI[expert])
    return out_SO


def pull_groups(grad_SO: torch.Tensor, weight_EOI: torch.Tensor, plan: Plan) -> torch.Tensor:
    if can_group(weight_EOI):
        return multiply_at_once(grad_SO, weight_EOI, plan)
    grad_SI = grad_SO.new_empty(len(grad_SO), weight_EOI.shape[2])
    for expert, start, stop in plan.spans:
        grad_SI[start:stop] = pull_back(grad_SO[start:stop], weight_EOI[expert])
    return grad_SI


def can_group(weight_EOI: torch.Tensor) -> bool:
    """Whether a kernel does all experts at once: on CUDA, for rows of whole 16 bytes. That it is
    the faster one there has not been measured."""
    is_whole = all(size * weight_EOI.element_size() % 16 == 0 for size in weight_EOI.shape[1:])
    is_plain = weight_EOI.is_cuda and weight_EOI.dtype == torch.bfloat16 and is_whole
    return is_plain and torch.cuda.get_device_capability(weight_EOI.device) >= (8, 0)


def multiply_at_once(left_SI: torch.Tensor, right_EIO: torch.Tensor, plan: Plan) -> torch.Tensor:
    """The grouped product, which a GPU does in one kernel."""
    return nn.functional.grouped_mm(left_SI.contiguous(), right_EIO, offs=plan.ends)


class _Experts(torch.autograd.Function):
    """down((act(gate x) * up x) * w), summed over each row's experts. Each projection is that of
    the place's expert, x W' + scale (x A') B'; leaves are arguments to be seen by autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        work: Work,
        hidden_NH: torch.Tensor,
        weights_NK: torch.Tensor,
        gate_up_EOH: torch.Tensor,
        down_EHI: torch.Tensor,
        *leaves: torch.Tensor,
    ) -> torch.Tensor:
        out_NH, both_SO, lows = ask_experts(work, hidden_NH, weights_NK, gate_up_EOH, down_EHI)
        ctx.work, ctx.lows, ctx.num_leaves = work, lows, len(leaves)
        ctx.save_for_backward(hidden_NH, weights_NK, both_SO, gate_up_EOH, down_EHI)
        return out_NH

    @staticmethod
    def backward(ctx: Any, grad_NH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_NH, weights_NK, both_SO, gate_up_EOH, down_EHI = ctx.saved_tensors
        work, plan, (half_lows, whole_lows) = ctx.work, ctx.work.plan, ctx.lows
        _, needs_hidden, needs_weights, needs_gate_up, needs_down = ctx.needs_input_grad[:5]
        inner = Inner(work, both_SO)
        whole = Product(weigh(inner.product_SI, weights_NK, plan), down_EHI, plan)
        grad_SI, grad_down = whole.pull(
            grad_NH[plan.tokens], work.whole, whole_lows, by_rows=True, by_weights=needs_down
        )
        grad_NK = inner.score(grad_SI, weights_NK, plan) if needs_weights else None
        halves = Product(hidden_NH[plan.tokens], gate_up_EOH, plan)
        grad_SH, grad_gate_up = halves.pull(
            inner.pull(weigh(grad_SI, weights_NK, plan)),
            work.halves,
            half_lows,
            by_rows=needs_hidden,
            by_weights=needs_gate_up,
        )
        grad_hidden_NH = sum_places(grad_SH, plan) if needs_hidden else None
        own = (grad_hidden_NH, grad_NK, grad_gate_up, grad_down)
        return (None, *own, *[None] * ctx.num_leaves)


class Inner:
    """act(gate) * up, computed again to be differentiated."""

    def __init__(self, work: Work, both_SO: torch.Tensor) -> None:
        self.up_SI = both_SO[:, work.width :]
        with torch.enable_grad():
            self.gate_SI = both_SO[:, : work.width].detach().requires_grad_()
            self.acted_SI = work.act(self.gate_SI)
        self.product_SI = self.acted_SI.detach() * self.up_SI

    def score(self, grad_SI: torch.Tensor, weights_NK: torch.Tensor, plan: Plan) -> torch.Tensor:
        """The gradient by the router's weights."""
        scores_S: torch.Tensor = (grad_SI * self.product_SI).sum(dim=1)
        return scores_S[plan.back].view(weights_NK.shape).to(weights_NK.dtype)

    def pull(self, grad_SI: torch.Tensor) -> torch.Tensor:
        """The gradient by gates and ups."""
        (left_SI,) = torch.autograd.grad(self.acted_SI, self.gate_SI, grad_SI * self.up_SI)
        return torch.cat([left_SI, grad_SI * self.acted_SI.detach()], dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """Rows times their experts' weights, to be differentiated."""

    rows: torch.Tensor  # (S, I)
    weight: torch.Tensor  # (E, O, I)
    plan: Plan

    def pull(
        self,
        grad_SO: torch.Tensor,
        shares: Sequence[Share],
        lows: Lows,
        *,
        by_rows: bool,
        by_weights: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The gradients by rows, empty where nobody needs it, and by weights. Those of adapters are
        summed into their runs' buffers."""
        grad_SI = grad_SO.new_empty(0)
        if by_rows:
            grad_SI = pull_groups(grad_SO, self.weight, self.plan)
        add_places(grad_SI if by_rows else None, grad_SO, self.rows, shares, lows)
        if not by_weights:
            return grad_SI, None
        return grad_SI, sum_groups(grad_SO, self.rows, self.weight, self.plan)


def add_places(
    grad_SI: torch.Tensor | None,
    grad_SO: torch.Tensor,
    rows_SI: torch.Tensor,
    shares: Sequence[Share],
    lows: Lows,
) -> None:
    """Sum every piece's gradients into its run's buffers, and its part of the rows' into theirs."""
    for share, share_lows in zip(shares, lows, strict=True):
        share_SO = grad_SO[:, share.columns]
        if grouped.is_suited(rows_SI, share.active):
            grouped.add_gradients(share.active, rows_SI, share_lows[0], share_SO, grad_SI)
            continue
        for (start, stop, pair), low_NR in zip(share.active, share_lows, strict=True):
            grad_low_NR = add_gradients(pair, rows_SI[start:stop], low_NR, share_SO[start:stop])
            if grad_SI is not None:
                a_RI = pair.a.to(grad_SI.dtype)
                grad_SI[start:stop].addmm_(grad_low_NR, a_RI, alpha=pair.scale)


def sum_groups(
    grad_SO: torch.Tensor, rows_SI: torch.Tensor, weight_EOI: torch.Tensor, plan: Plan
) -> torch.Tensor:
    """The gradient by the weights themselves."""
    grad_EOI = torch.zeros_like(weight_EOI)
    for expert, start, stop in plan.spans:
        grad_EOI[expert] = multiply(grad_SO[start:stop].T, rows_SI[start:stop].T)
    return grad_EOI
