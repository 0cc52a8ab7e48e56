"""Many runs' adapters in one layer by grouped products: on CUDA, where each launch costs its time.

The same sums as slice by slice. As and Bs of different ranks are padded with zeros and stacked;
rows of no run go through zeros. Tested on a CPU; on CUDA not measured yet.

Shapes: N rows, I inputs and O outputs of a layer, R largest rank, padded, G groups of rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import nn

from training.engine.products import multiply, pull_back

FEWEST_RUNS = 2
WIDTH_MULTIPLE = 8  # of bfloat16: the kernel takes rows of whole 16 bytes only
RANK_MULTIPLE = 16  # and its tiles are full


class LowRank(Protocol):
    """One run's A and B, and the sums of their gradients."""

    @property
    def a(self) -> torch.Tensor: ...
    @property
    def b(self) -> torch.Tensor: ...
    @property
    def a_grad(self) -> torch.Tensor: ...
    @property
    def b_grad(self) -> torch.Tensor: ...
    @property
    def scale(self) -> float: ...


Parts = Sequence[tuple[int, int, LowRank]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """Where groups of rows end, and each row's scale; on the device."""

    ends: torch.Tensor  # [G], int32
    scales: torch.Tensor  # [N, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stacks:
    """All groups' matrices. A group that belongs to no run has zeros."""

    a: torch.Tensor  # [G, R, I]
    b: torch.Tensor  # [G, O, R]


def is_suited(rows_NI: torch.Tensor, active: Parts) -> bool:
    """Grouped products of PyTorch exist for bfloat16 on devices of capability 8.0 up."""
    if rows_NI.device.type != "cuda" or rows_NI.dtype != torch.bfloat16:
        return False
    if len(active) < FEWEST_RUNS or not are_widths_whole(active):
        return False
    return torch.cuda.get_device_capability(rows_NI.device) >= (8, 0)


def are_widths_whole(active: Parts) -> bool:
    """Of what enters the layer and what leaves it, which is the same for all runs."""
    _, _, pair = active[0]
    return pair.a.shape[1] % WIDTH_MULTIPLE == 0 and len(pair.b) % WIDTH_MULTIPLE == 0


def record_grouped(
    rows_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, active: Parts
) -> torch.Tensor:
    """The layer's output, to be differentiated."""
    leaves = [leaf for *_, pair in active for leaf in (pair.a, pair.b)]
    return _GroupedLinear.apply(rows_NI, weight_OI, bias_O, active, *leaves)  # type: ignore[no-any-return,no-untyped-call]


def list_groups(active: Parts, num_rows: int) -> Iterator[tuple[int, float, LowRank | None]]:
    """End, scale and matrices of each group; together they cover all rows."""
    at = 0
    for start, stop, pair in active:
        if start > at:
            yield start, 0.0, None
        yield stop, pair.scale, pair
        at = stop
    if num_rows > at:
        yield num_rows, 0.0, None


def cut(active: Parts, like_NI: torch.Tensor) -> Cuts:
    groups = tuple((end, scale) for end, scale, _ in list_groups(active, len(like_NI)))
    return _make_cuts(groups, like_NI.device, like_NI.dtype)


@lru_cache(maxsize=8)
def _make_cuts(
    groups: tuple[tuple[int, float], ...], device: torch.device, dtype: torch.dtype
) -> Cuts:
    """Every layer of a pass is cut alike: what travels to the device does so once."""
    ends = torch.tensor([end for end, _ in groups], dtype=torch.int32)
    scales = torch.tensor([scale for _, scale in groups], dtype=dtype)
    lengths = ends.diff(prepend=ends.new_zeros(1))
    scales_N1 = scales.repeat_interleave(lengths)[:, None]
    return Cuts(ends=ends.to(device), scales=scales_N1.to(device))


def stack(active: Parts, like_NI: torch.Tensor, num_outputs: int) -> Stacks:
    """Two copies for all runs together, whatever their number."""
    num_rows, inputs = like_NI.shape
    pairs = [pair for *_, pair in list_groups(active, num_rows)]
    most = max(len(pair.a) for pair in pairs if pair is not None)
    rank = -(-most // RANK_MULTIPLE) * RANK_MULTIPLE
    stacks = Stacks(
        a=like_NI.new_zeros(len(pairs), rank, inputs),
        b=like_NI.new_zeros(len(pairs), num_outputs, rank),
    )
    held = [(place, pair) for place, pair in enumerate(pairs) if pair is not None]
    torch._foreach_copy_(
        [stacks.a[place, : len(pair.a)] for place, pair in held],
        [pair.a.detach() for _, pair in held],
    )
    torch._foreach_copy_(
        [stacks.b[place, :, : len(pair.a)] for place, pair in held],
        [pair.b.detach() for _, pair in held],
    )
    return stacks


def add_grouped(active: Parts, num_rows: int, a_grads: torch.Tensor, b_grads: torch.Tensor) -> None:
    """Each run's share of the stacked gradients into its own buffers, which are float32."""
    pairs = [pair for *_, pair in list_groups(active, num_rows)]
    held = [(place, pair) for place, pair in enumerate(pairs) if pair is not None]
    torch._foreach_add_(
        [grad for _, pair in held for grad in (pair.a_grad, pair.b_grad)],
        [
            grad.float()
            for place, pair in held
            for grad in (a_grads[place, : len(pair.a)], b_grads[place, :, : len(pair.a)])
        ],
    )


def add_low_rank(out_NO: torch.Tensor, rows_NI: torch.Tensor, active: Parts) -> torch.Tensor:
    """In place: each group's part of the output. Returns its rows times A, scaled."""
    cuts, stacks = cut(active, rows_NI), stack(active, rows_NI, out_NO.shape[1])
    low_NR = nn.functional.grouped_mm(rows_NI, stacks.a.mT, offs=cuts.ends) * cuts.scales
    out_NO += nn.functional.grouped_mm(low_NR, stacks.b.mT, offs=cuts.ends)
    return low_NR


def add_gradients(
    active: Parts,
    rows_NI: torch.Tensor,
    low_NR: torch.Tensor,
    grad_NO: torch.Tensor,
    grad_NI: torch.Tensor | None,
) -> None:
    """Sum every group's gradients of A and B into its run's buffers, and those of the rows into
    `grad_NI`."""
    grad_NO = grad_NO.contiguous()
    cuts, stacks = cut(active, rows_NI), stack(active, rows_NI, grad_NO.shape[1])
    grad_low_NR = nn.functional.grouped_mm(grad_NO, stacks.b, offs=cuts.ends) * cuts.scales
    b_grads_GOR = nn.functional.grouped_mm(grad_NO.T, low_NR, offs=cuts.ends)
    a_grads_GRI = nn.functional.grouped_mm(grad_low_NR.T, rows_NI, offs=cuts.ends)
    add_grouped(active, len(rows_NI), a_grads_GRI, b_grads_GOR)
    if grad_NI is not None:
        grad_NI += nn.functional.grouped_mm(grad_low_NR, stacks.a, offs=cuts.ends)


class _GroupedLinear(torch.autograd.Function):
    """x W' + s (x A') B' for all groups at once; leaves are there only to be seen by autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_NI: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        active: Parts,
        *leaves: torch.Tensor,
    ) -> torch.Tensor:
        out_NO = multiply(rows_NI, weight_OI, bias_O)
        low_NR = add_low_rank(out_NO, rows_NI, active)
        ctx.active, ctx.num_leaves = active, len(leaves)
        ctx.save_for_backward(rows_NI, weight_OI, low_NR)
        return out_NO

    @staticmethod
    def backward(ctx: Any, grad_NO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows_NI, weight_OI, low_NR = ctx.saved_tensors
        grad_NI = pull_back(grad_NO, weight_OI) if ctx.needs_input_grad[0] else None
        add_gradients(ctx.active, rows_NI, low_NR, grad_NO, grad_NI)
        return (grad_NI, None, None, None, *[None] * ctx.num_leaves)
