"""LoRA on the input embedding: a token's row of it gets B times the token's column of A.

The format is PEFT's: A zero and B normal at first. Where the embedding's weights are the head's
too, each has an adapter of its own, and one says nothing about the other.

Shapes: N tokens, flattened, V vocabulary, H hidden size, R rank, U different tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from training.engine.lora import Active, Adapted, Block, Pair, Route, sum_product
from training.errors import InvalidInput


class LoraEmbedding(Adapted):
    """An embedding and its adapters. Gemma's scales what it looks up, and the adapters' share."""

    embed_scale: torch.Tensor | None

    def __init__(self, embedding: nn.Module, route: Route) -> None:
        super().__init__(route)
        scale = getattr(embedding, "embed_scale", None)
        is_plain = type(embedding) is nn.Embedding and embedding.max_norm is None
        if not isinstance(embedding, nn.Embedding) or (scale is None and not is_plain):
            raise InvalidInput(f"the input embedding is a {type(embedding).__name__}: not known")
        self.weight = embedding.weight
        self.padding_idx = embedding.padding_idx  # its row is not trained with all weights
        self.register_buffer("embed_scale", scale, persistent=False)

    def name_blocks(self, name: str, rank: int) -> tuple[Block, Block]:
        vocabulary, hidden = self.weight.shape
        a, b = name_tensors(name)
        return (
            Block(names=(a,), shape=(rank, vocabulary)),
            Block(names=(b,), shape=(hidden, rank)),
        )

    def initialise(self, pair: Pair, generator: torch.Generator) -> None:
        pair.b.detach().copy_(torch.randn(pair.b.shape, generator=generator))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        active = self.find_active(self.route.slices)
        ids_N = ids.reshape(-1)
        if active and torch.is_grad_enabled():
            leaves = [leaf for *_, pair in active for leaf in (pair.a, pair.b)]
            out_NH = _SegmentedEmbedding.apply(ids_N, self.weight, active, *leaves)  # type: ignore[no-untyped-call]
        else:
            out_NH, _ = look_up(ids_N, self.weight, active, self.padding_idx)
        out: torch.Tensor = out_NH.view(*ids.shape, -1)
        return out if self.embed_scale is None else out * self.embed_scale.to(out.dtype)


def name_tensors(layer: str) -> tuple[str, str]:
    """The names PEFT gives the A and the B of an embedding in adapter_model.safetensors."""
    prefix = f"base_model.model.{layer}.lora_embedding"
    return f"{prefix}_A", f"{prefix}_B"


def look_up(
    ids_N: torch.Tensor,
    weight_VH: torch.Tensor,
    active: Active,
    padding_idx: int | None = None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The rows of the tokens, and every slice's columns of A, which the backward needs again."""
    out_NH = nn.functional.embedding(ids_N, weight_VH, padding_idx)
    lows = []
    for start, stop, pair in active:
        low_NR = pair.a[:, ids_N[start:stop]].T.to(out_NH.dtype)
        out_NH[start:stop].addmm_(low_NR, pair.b.to(low_NR.dtype).T, alpha=pair.scale)
        lows.append(low_NR)
    return out_NH, lows


def add_columns(total_RV: torch.Tensor, ids_N: torch.Tensor, grad_NR: torch.Tensor) -> None:
    """Sum what belongs to one token in the order of the tokens: the same on every device and day,
    which adding to places that repeat is not."""
    sorted_N, order_N = ids_N.sort(stable=True)
    ids_U, counts_U = torch.unique_consecutive(sorted_N, return_counts=True)
    sums_UR = torch.segment_reduce(grad_NR[order_N].float(), "sum", lengths=counts_U, axis=0)
    total_RV[:, ids_U] += sums_UR.T


class _SegmentedEmbedding(torch.autograd.Function):
    """W[id] + scale A'[id] B' for each slice; A and B are arguments only to be seen by autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        ids_N: torch.Tensor,
        weight_VH: torch.Tensor,
        active: Active,
        *leaves: torch.Tensor,
    ) -> torch.Tensor:
        out_NH, lows = look_up(ids_N, weight_VH, active)
        ctx.active, ctx.num_leaves = active, len(leaves)
        ctx.save_for_backward(ids_N, *lows)
        return out_NH

    @staticmethod
    def backward(ctx: Any, grad_NH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ids_N, *lows = ctx.saved_tensors
        add_gradients(ctx.active, ids_N, lows, grad_NH)
        return (None, None, None, *[None] * ctx.num_leaves)


def add_gradients(
    active: Active, ids_N: torch.Tensor, lows: Sequence[torch.Tensor], grad_NH: torch.Tensor
) -> None:
    """Sum every slice's gradients of A and B into its run's buffers."""
    for (start, stop, pair), low_NR in zip(active, lows, strict=True):
        slice_NH = grad_NH[start:stop]
        sum_product(pair.b_grad, slice_NH.T, low_NR, pair.scale)
        grad_NR = slice_NH @ pair.b.to(slice_NH.dtype)
        add_columns(pair.a_grad, ids_N[start:stop], grad_NR * pair.scale)
