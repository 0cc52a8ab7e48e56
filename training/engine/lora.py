"""LoRA by segment: every linear layer holds each run's A and B and applies them to that run's rows.

Shapes: N rows (tokens, flattened), I inputs and O outputs of a layer, R rank.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from training.engine import grouped
from training.engine.products import multiply, pull_back


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows `start` to `stop` of what enters a layer, flattened to [N, I], belong to `run`."""

    run: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """One run's A and B in one layer, and the sums of their gradients. Views of flat buffers.

    Those of a stack have a dimension more in front, and `parts` are its pairs one by one.
    """

    a: torch.Tensor  # [R, I]
    b: torch.Tensor  # [O, R]
    a_grad: torch.Tensor
    b_grad: torch.Tensor
    scale: float
    parts: tuple["Pair", ...] = ()


Active = tuple[tuple[int, int, Pair], ...]


def cut_stack(stack: Pair) -> Pair:
    """With its parts, whose gradients are views too."""
    tensors = zip(stack.a.detach(), stack.b.detach(), stack.a_grad, stack.b_grad, strict=True)
    is_trained = stack.a.requires_grad
    parts = tuple(
        Pair(
            a=a.requires_grad_(is_trained),
            b=b.requires_grad_(is_trained),
            a_grad=a_grad,
            b_grad=b_grad,
            scale=stack.scale,
        )
        for a, b, a_grad, b_grad in tensors
    )
    return replace(stack, parts=parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Where gradients of a head's own weights are summed, while a run trains all of a model."""

    weight: torch.Tensor
    bias: torch.Tensor | None


class Route:
    """Which rows belong to which run in the pass that runs now; shared by all layers of a model."""

    def __init__(self) -> None:
        self.slices: Sequence[Slice] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Matrices of one shape that lie together in a run's buffers, by the names PEFT gives them."""

    names: tuple[str, ...]
    shape: tuple[int, int]
    is_stack: bool = False  # the layer sees them as one tensor of three dimensions

    @property
    def size(self) -> int:
        rows, columns = self.shape
        return len(self.names) * rows * columns


class Adapted(nn.Module, ABC):
    """A layer with any number of runs' adapters beside it."""

    def __init__(self, route: Route) -> None:
        super().__init__()
        self.route = route
        self.pairs: dict[str, Pair] = {}

    def find_active(self, slices: Sequence[Slice]) -> Active:
        return tuple((s.start, s.stop, self.pairs[s.run]) for s in slices if s.run in self.pairs)

    @abstractmethod
    def name_blocks(self, name: str, rank: int) -> tuple[Block, Block]:
        """What an adapter of that rank holds for this layer: its As and its Bs."""

    def initialise(self, pair: Pair, generator: torch.Generator) -> None:
        """A uniform as in nn.Linear, B zero: a new adapter changes nothing."""
        for a_RI in pair.a.detach().view(-1, *pair.a.shape[-2:]):
            fresh_RI = torch.empty(a_RI.shape)
            nn.init.kaiming_uniform_(fresh_RI, a=math.sqrt(5), generator=generator)
            a_RI.copy_(fresh_RI)


class LoraLinear(Adapted):
    """A linear layer and its adapters, or trained itself by one run."""

    def __init__(self, linear: nn.Linear, route: Route) -> None:
        super().__init__(route)
        self.weight = linear.weight
        self.bias = linear.bias
        self.sums: Sums | None = None

    def name_blocks(self, name: str, rank: int) -> tuple[Block, Block]:
        outputs, inputs = self.weight.shape
        a, b = name_tensors(name)
        return (
            Block(names=(a,), shape=(rank, inputs)),
            Block(names=(b,), shape=(outputs, rank)),
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        active = self.find_active(self.route.slices)
        rows_NI = inputs.reshape(-1, inputs.shape[-1])
        if self.weight.requires_grad and torch.is_grad_enabled():
            out_NO = train_rows(rows_NI, self.weight, self.bias)
        elif torch.is_grad_enabled():
            out_NO = record_rows(rows_NI, self.weight, self.bias, active)
        else:
            out_NO, _ = project_rows(rows_NI, self.weight, self.bias, active)
        return out_NO.view(*inputs.shape[:-1], -1)


def record_rows(
    rows_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, active: Active
) -> torch.Tensor:
    """`project_rows`, to be differentiated."""
    if grouped.is_suited(rows_NI, active):
        return grouped.record_grouped(rows_NI, weight_OI, bias_O, active)
    leaves = [leaf for *_, pair in active for leaf in (pair.a, pair.b)]
    return _SegmentedLinear.apply(rows_NI, weight_OI, bias_O, active, *leaves)  # type: ignore[no-any-return,no-untyped-call]


def project_rows(
    rows_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, active: Active
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The layer's output, and every slice's rows times A, which the backward needs again."""
    out_NO = multiply(rows_NI, weight_OI, bias_O)
    return out_NO, add_low_rank(out_NO, rows_NI, active)


def add_low_rank(out_NO: torch.Tensor, rows_NI: torch.Tensor, active: Active) -> list[torch.Tensor]:
    """In place: each slice's part of the output. Returns its rows times A."""
    lows = []
    for start, stop, pair in active:
        low_NR = rows_NI[start:stop] @ pair.a.to(rows_NI.dtype).T
        out_NO[start:stop].addmm_(low_NR, pair.b.to(low_NR.dtype).T, alpha=pair.scale)
        lows.append(low_NR)
    return lows


def add_gradients(
    pair: Pair, rows_NI: torch.Tensor, low_NR: torch.Tensor, grad_NO: torch.Tensor
) -> torch.Tensor:
    """Sum one slice's gradients of A and B into the run's buffers; returns that of `low_NR`."""
    grad_low_NR = grad_NO @ pair.b.to(grad_NO.dtype)
    sum_product(pair.b_grad, grad_NO.T, low_NR, pair.scale)
    sum_product(pair.a_grad, grad_low_NR.T, rows_NI, pair.scale)
    return grad_low_NR


def sum_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float) -> None:
    """Buffers are float32 whatever the model computes in."""
    if left.dtype == total.dtype:
        total.addmm_(left, right, alpha=scale)
    else:
        total.add_(left @ right, alpha=scale)


class _SegmentedLinear(torch.autograd.Function):
    """x W' + scale (x A') B' for each slice; A and B are arguments only to be seen by autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_NI: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        active: Active,
        *leaves: torch.Tensor,
    ) -> torch.Tensor:
        out_NO, lows = project_rows(rows_NI, weight_OI, bias_O, active)
        ctx.active, ctx.num_leaves = active, len(leaves)
        ctx.save_for_backward(rows_NI if active else None, weight_OI, *lows)
        return out_NO

    @staticmethod
    def backward(ctx: Any, grad_NO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows_NI, weight_OI, *lows = ctx.saved_tensors
        grad_NI = pull_back(grad_NO, weight_OI) if ctx.needs_input_grad[0] else None
        for (start, stop, pair), low_NR in zip(ctx.active, lows, strict=True):
            slice_NO = grad_NO[start:stop]
            grad_low_NR = add_gradients(pair, rows_NI[start:stop], low_NR, slice_NO)
            if grad_NI is not None:
                a_RI = pair.a.to(grad_NI.dtype)
                grad_NI[start:stop].addmm_(grad_low_NR, a_RI, alpha=pair.scale)
        return (grad_NI, None, None, None, *[None] * ctx.num_leaves)


def train_rows(
    rows_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None
) -> torch.Tensor:
    """The layer's output, to be differentiated by its own weights too."""
    return _TrainedLinear.apply(rows_NI, weight_OI, bias_O)  # type: ignore[no-any-return,no-untyped-call]


class _TrainedLinear(torch.autograd.Function):
    """x W' + b of a full-parameter run."""

    @staticmethod
    def forward(
        ctx: Any, rows_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(rows_NI, weight_OI)
        return multiply(rows_NI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, grad_NO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows_NI, weight_OI = ctx.saved_tensors
        grad_NI = pull_back(grad_NO, weight_OI) if ctx.needs_input_grad[0] else None
        grad_O = grad_NO.sum(dim=0) if ctx.needs_input_grad[2] else None
        return grad_NI, multiply(grad_NO.T, rows_NI.T), grad_O


def name_tensors(layer: str) -> tuple[str, str]:
    """The names PEFT gives the A and the B of a layer in adapter_model.safetensors."""
    return (f"base_model.model.{layer}.lora_A.weight", f"base_model.model.{layer}.lora_B.weight")
