"""Attention over packed rows, sequence by sequence, under our own name in transformers.

Shapes: B batch, H query heads, K key heads, T tokens of the packed row, D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ATTENTION = "hone"  # pass as attn_implementation when a model is loaded


@dataclass(frozen=True, slots=True)
class Group:
    """`count` neighbours of equal length; one that has groups `above` continues them."""

    count: int
    length: int
    above: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Segments:
    """How a packed row is cut, and what each piece may look back on besides itself."""

    groups: tuple[Group, ...]


def attend(
    module: nn.Module,
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Segments | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """With `segments`: causal inside each one, blind across. Without: transformers' own SDPA."""
    if segments is None:
        return sdpa_attention_forward(
            module, query_BHTD, key_BKTD, value_BKTD, attention_mask, scaling=scaling, **kwargs
        )
    sizes = [group.count * group.length for group in segments.groups]
    pieces = [
        torch.split_with_sizes(states, sizes, dim=2)
        for states in (query_BHTD, key_BKTD, value_BKTD)
    ]
    outputs = [
        _attend_group(group, [_with_above(states, place, group) for states in pieces], scaling)
        for place, group in enumerate(segments.groups)
    ]
    return torch.cat(outputs, dim=1), None


def _with_above(pieces: Sequence[torch.Tensor], place: int, group: Group) -> torch.Tensor:
    if not group.above:
        return pieces[place]
    return torch.cat([*(pieces[above] for above in group.above), pieces[place]], dim=2)


def _attend_group(
    group: Group, states: Sequence[torch.Tensor], scaling: float | None
) -> torch.Tensor:
    """Equally long sequences in one call; returns [1, tokens of the group, H, D].

    A group that continues others is attended from their beginning on, and its end is taken:
    a square is what every fast kernel knows, and attention is a small share of a pass.
    """
    query, key, value = (_unfold(state, group.count) for state in states)
    attended = nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    if group.above:
        attended = attended[:, :, -group.length :]
    return attended.transpose(1, 2).flatten(0, 1).unsqueeze(0)


def _unfold(states_1HTD: torch.Tensor, count: int) -> torch.Tensor:
    """[1, H, count * length, D] -> [count, H, length, D], without a copy."""
    return torch.unflatten(states_1HTD.squeeze(0), 1, (count, -1)).transpose(0, 1)


def build_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """A mask only where the caller brought one: a packed row is cut by segments instead."""
    if kwargs.get("attention_mask") is None:
        return None
    return sdpa_mask(*args, **kwargs)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, build_mask)
