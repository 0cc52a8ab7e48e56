"""How a layer's attention scores: its scale, its window, its cap; for training and for decoding.

Shapes: C sequences of one call, H heads, Q queries, L keys, D head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, slots=True)
class Rule:
    """`window`: tokens that a query sees, itself among them. `softcap`: bound of the scores."""

    scaling: float | None
    window: int | None = None
    softcap: float | None = None


def find_seen(at_Q: Tensor, place_L: Tensor, window: int | None) -> Tensor:
    """[Q, L]: whether the query at a position sees what lies at a place."""
    seen_QL = place_L <= at_Q[:, None]
    if window is not None:
        seen_QL &= place_L > at_Q[:, None] - window
    return seen_QL


def attend_masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rule: Rule) -> Tensor:
    """[C, H, Q, D] of queries and [C, H, L, D] of keys and values. A mask is a bool or is added."""
    if rule.softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=rule.scaling)
    scores = cap_scores(query, key, rule)
    is_bool = mask.dtype == torch.bool
    scores = scores.masked_fill_(~mask, float("-inf")) if is_bool else scores.add_(mask)
    return scores.softmax(-1).to(value.dtype) @ value


def cap_scores(query: Tensor, key: Tensor, rule: Rule) -> Tensor:
    """cap * tanh(score / cap) in the place of the scores (Gemma 2, arXiv:2408.00118, section 2)."""
    assert rule.softcap is not None
    scaling = query.shape[-1] ** -0.5 if rule.scaling is None else rule.scaling
    scores = (query @ key.transpose(2, 3)).float() * (scaling / rule.softcap)
    return scores.tanh() * rule.softcap


def attend_capped(query: Tensor, key: Tensor, value: Tensor, offset: int, rule: Rule) -> Tensor:
    """Queries of whom the first lies `offset` keys after the first key; heads may share keys. The
    scores exist one call at a time: the backward computes them again."""
    states = (query, key, value)
    if not torch.is_grad_enabled():
        return _attend_capped(*states, offset, rule)
    return checkpoint(  # type: ignore[no-any-return]
        _attend_capped, *states, offset, rule, use_reentrant=False, preserve_rng_state=False
    )


def _attend_capped(query: Tensor, key: Tensor, value: Tensor, offset: int, rule: Rule) -> Tensor:
    num_rows, groups = query.shape[2], (key.shape[1], query.shape[1] // key.shape[1])
    places = torch.arange(key.shape[2], device=key.device)
    seen_QL = find_seen(places[offset : offset + num_rows], places, rule.window)
    scores = cap_scores(torch.unflatten(query, 1, groups).flatten(2, 3), key, rule)
    scores = torch.unflatten(scores, 2, (-1, num_rows)).masked_fill(~seen_QL, float("-inf"))
    weights = scores.softmax(-1).to(value.dtype).flatten(2, 3)
    return torch.unflatten(weights @ value, 2, (-1, num_rows)).flatten(1, 2)
