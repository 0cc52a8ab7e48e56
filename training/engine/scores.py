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
    if torch.is_grad_enabled():
        # The scores exist one call at a time: the backward computes them again.
        return checkpoint(  # type: ignore[no-any-return]
            _attend_capped,
            *(query, key, value, mask, rule),
            use_reentrant=False,
            preserve_rng_state=False,
        )
    return _attend_capped(query, key, value, mask, rule)


def _attend_capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rule: Rule) -> Tensor:
    """cap * tanh(score / cap) in the place of the scores (Gemma 2, arXiv:2408.00118, section 2)."""
    assert rule.softcap is not None
    scaling = query.shape[-1] ** -0.5 if rule.scaling is None else rule.scaling
    scores = (query @ key.transpose(2, 3)).float() * (scaling / rule.softcap)
    scores = scores.tanh() * rule.softcap
    is_seen = mask.dtype == torch.bool
    scores = scores.masked_fill(~mask, float("-inf")) if is_seen else scores + mask
    return scores.softmax(-1).to(value.dtype) @ value
