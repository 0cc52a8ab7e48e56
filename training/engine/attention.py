"""Attention over packed rows, sequence by sequence, under our own name in transformers.

Shapes: B batch, H query heads, K key heads, T tokens of the packed row, D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ATTENTION = "hone"  # pass as attn_implementation when a model is loaded


@dataclass(frozen=True, slots=True)
class Segments:
    """How a packed row is cut: (count, length) of neighbours that are equally long."""

    groups: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Segments":
        return cls(tuple((len(list(same)), length) for length, same in groupby(lengths)))


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
    sizes = [count * length for count, length in segments.groups]
    pieces = zip(
        segments.groups,
        *(torch.split_with_sizes(s, sizes, dim=2) for s in (query_BHTD, key_BKTD, value_BKTD)),
        strict=True,
    )
    outputs = [_attend_group(group, states, scaling) for group, *states in pieces]
    return torch.cat(outputs, dim=1), None


def _attend_group(
    group: tuple[int, int], states: Sequence[torch.Tensor], scaling: float | None
) -> torch.Tensor:
    """Equally long sequences in one call; returns [1, tokens, H, D]."""
    query, key, value = (_unfold(state, group) for state in states)
    attended = nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended.transpose(1, 2).flatten(0, 1).unsqueeze(0)


def _unfold(states_1HTD: torch.Tensor, group: tuple[int, int]) -> torch.Tensor:
    """[1, H, count * length, D] -> [count, H, length, D], without a copy."""
    return torch.unflatten(states_1HTD.squeeze(0), 1, group).transpose(0, 1)


def build_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """A mask only where the caller brought one: a packed row is cut by segments instead."""
    if kwargs.get("attention_mask") is None:
        return None
    return sdpa_mask(*args, **kwargs)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, build_mask)
