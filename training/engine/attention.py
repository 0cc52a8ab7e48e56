"""Attention over packed rows, sequence by sequence, under our own name in transformers.

Shapes: B batch, H query heads, K key heads, T tokens of the packed row, D head width; C sequences
of one call, N of their tokens that ask, L those they look back on and themselves.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from training.engine.kernels import choose_kernel
from training.engine.scores import Rule, attend_capped, attend_masked, find_seen
from training.engine.segments import Group, Segments
from training.memory import SCORE_BYTES

ATTENTION = "hone"  # pass as attn_implementation when a model is loaded
BLOCK_ROWS = 256  # queries of one call where a mask is needed

Pieces = Sequence[torch.Tensor]  # [1, heads, tokens, D] for each group


def attend(  # noqa: PLR0913 - the signature is transformers'
    module: nn.Module,  # noqa: ARG001
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - none is made: the segments say it
    *,
    segments: Segments,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal inside each segment, blind across."""
    rule = Rule(scaling, sliding_window, softcap)
    if (kernel := choose_kernel(query_BHTD)) is not None:
        return kernel(query_BHTD, key_BKTD, value_BKTD, segments, rule), None
    return attend_groups(query_BHTD, key_BKTD, value_BKTD, segments, rule), None


def attend_groups(
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    segments: Segments,
    rule: Rule,
) -> torch.Tensor:
    """PyTorch's own attention, one call for each group of a row."""
    sizes = [group.count * group.length for group in segments.groups]
    states = [
        torch.split_with_sizes(each, sizes, dim=2) for each in (query_BHTD, key_BKTD, value_BKTD)
    ]
    lengths = [group.length for group in segments.groups]
    outputs = []
    for place, group in enumerate(segments.groups):
        depth = sum(lengths[above] for above in group.above)
        if is_plain(rule, depth + group.length):
            outputs.append(_attend_whole(group, place, states, rule))
        else:
            outputs.append(_attend_parts(segments, place, states, rule))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def is_plain(rule: Rule, length: int) -> bool:
    """Whether every token sees all before it, with scores as they are."""
    return rule.softcap is None and (rule.window is None or rule.window >= length)


def _attend_whole(group: Group, place: int, states: Sequence[Pieces], rule: Rule) -> torch.Tensor:
    """Equally long sequences in one call; returns [1, tokens of the group, H, D].

    A group that continues others is attended from their beginning on, and its end is taken:
    a square is what every fast kernel knows, and attention is a small share of a pass.
    """
    paths = (_with_above(pieces, place, group) for pieces in states)
    query, key, value = (_unfold(path, group.count) for path in paths)
    return _fold(attend_causal(query, key, value, rule)[:, :, -group.length :])


def _attend_parts(
    segments: Segments, place: int, states: Sequence[Pieces], rule: Rule
) -> torch.Tensor:
    group = segments.groups[place]
    reach = None if rule.window is None else rule.window - 1
    queries, *others = states
    paths = (_with_above(pieces, place, group, reach) for pieces in others)
    key, value = (_unfold(path, group.count) for path in paths)
    query = _unfold(queries[place], group.count)
    return _fold(attend_blocks(query, key, value, rule, segments.masks))


def _with_above(pieces: Pieces, place: int, group: Group, reach: int | None = None) -> torch.Tensor:
    """A group's tokens after those that it continues, of which the last `reach` are enough."""
    if not group.above:
        return pieces[place]
    path = [pieces[above] for above in group.above]
    if reach is not None:
        path = cut_front(path, reach)
    return torch.cat([*path, pieces[place]], dim=2)


def cut_front(path: Pieces, length: int) -> list[torch.Tensor]:
    """As many pieces, and as much of the first of them, as the last `length` tokens lie in."""
    kept: list[torch.Tensor] = []
    for piece in reversed(path):
        if length > 0:
            kept.append(piece[:, :, -length:])
            length -= piece.shape[2]
    return kept[::-1]


def _unfold(states_1HTD: torch.Tensor, count: int) -> torch.Tensor:
    """[1, H, count * length, D] -> [count, H, length, D], without a copy."""
    return torch.unflatten(states_1HTD.squeeze(0), 1, (count, -1)).transpose(0, 1)


def _fold(attended_CHND: torch.Tensor) -> torch.Tensor:
    return attended_CHND.transpose(1, 2).flatten(0, 1).unsqueeze(0)


def attend_causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: Rule
) -> torch.Tensor:
    return nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        is_causal=True,
        scale=rule.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def attend_blocks(
    query_CHND: torch.Tensor,
    key_CKLD: torch.Tensor,
    value_CKLD: torch.Tensor,
    rule: Rule,
    masks: dict[object, torch.Tensor],
) -> torch.Tensor:
    """Queries that are the last N of L tokens, some at a time, each with no more keys than it sees.

    So a window costs its own width a token, not the sequence's, and capped scores never exist all.
    """
    (count, heads, length, _), total = query_CHND.shape, key_CKLD.shape[2]
    ends = list(cut_rows(total - length, total, rule, count * heads))
    places = [(find_first(start, stop, rule.window), stop) for start, stop in ends]
    before = total - length
    queries = cut_out(query_CHND, [(start - before, stop - before) for start, stop in ends])
    keys, values = cut_out(key_CKLD, places), cut_out(value_CKLD, places)
    outputs = []
    for place, (start, stop) in enumerate(ends):
        query, key, value = (pieces[place] for pieces in (queries, keys, values))
        offset = start - places[place][0]
        if rule.softcap is not None:
            outputs.append(attend_capped(query, key, value, offset, rule))
        elif start == 0 and is_plain(rule, stop):
            outputs.append(attend_causal(query, key, value, rule))
        else:
            mask = find_mask(masks, query, key, offset, rule.window)
            outputs.append(attend_window(query, key, value, mask, rule))
    return torch.cat(outputs, dim=2)


def find_first(start: int, stop: int, window: int | None) -> int:
    """The first key that is read for queries from `start` on: some before those that they see, as
    kernels on CUDA want masks whose rows are a multiple of 16 long."""
    first = 0 if window is None else start - window + 1
    return max(0, first - (first - stop) % 16)


def cut_out(
    states_CHTD: torch.Tensor, places: Sequence[tuple[int, int]]
) -> tuple[torch.Tensor, ...]:
    return _Cut.apply(states_CHTD, places)  # type: ignore[no-any-return,no-untyped-call]


class _Cut(torch.autograd.Function):
    """Pieces that may overlap. The gradient of each would be as long as all of them, were they cut
    one by one: here it costs its own length."""

    @staticmethod
    def forward(
        ctx: Any, states_CHTD: torch.Tensor, places: Sequence[tuple[int, int]]
    ) -> tuple[torch.Tensor, ...]:
        ctx.shape, ctx.places = states_CHTD.shape, places
        return tuple(states_CHTD[:, :, start:stop] for start, stop in places)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        total_CHTD = grads[0].new_zeros(ctx.shape)
        for (start, stop), grad in zip(ctx.places, grads, strict=True):
            total_CHTD[:, :, start:stop] += grad
        return total_CHTD, None


def cut_rows(start: int, stop: int, rule: Rule, num_heads: int) -> Iterator[tuple[int, int]]:
    """Positions of queries that are attended together: first those that the window reaches back
    from to the beginning, which need no mask."""
    at, size = start, BLOCK_ROWS
    if start == 0 and rule.window is not None and is_plain(rule, rule.window):
        at = min(rule.window, stop)
        yield 0, at
    if rule.softcap is not None:
        num_keys = stop if rule.window is None else min(stop, rule.window + BLOCK_ROWS)
        size = max(1, min(BLOCK_ROWS, SCORE_BYTES // (4 * num_heads * num_keys)))
    yield from ((each, min(each + size, stop)) for each in range(at, stop, size))


def find_mask(
    masks: dict[object, torch.Tensor],
    query_CHQD: torch.Tensor,
    key_CKLD: torch.Tensor,
    offset: int,
    window: int | None,
) -> torch.Tensor:
    """What is added to the scores, once for every head that shares a key with others."""
    (_, heads, num_rows, _), (_, shared, total, _) = query_CHQD.shape, key_CKLD.shape
    kind = (heads // shared, num_rows, total, offset, window, key_CKLD.dtype)
    if kind not in masks:
        places = torch.arange(total, device=key_CKLD.device)
        seen_QL = find_seen(places[offset : offset + num_rows], places, window)
        mask_QL = torch.zeros(seen_QL.shape, dtype=key_CKLD.dtype, device=key_CKLD.device)
        mask_QL.masked_fill_(~seen_QL, float("-inf"))
        masks[kind] = mask_QL.repeat(heads // shared, 1)
    return masks[kind]


def attend_window(
    query_CHQD: torch.Tensor,
    key_CKLD: torch.Tensor,
    value_CKLD: torch.Tensor,
    mask: torch.Tensor,
    rule: Rule,
) -> torch.Tensor:
    """Heads that share a key are queries of one head: not every kernel that takes a mask also knows
    grouped heads."""
    shared, num_rows = key_CKLD.shape[1], query_CHQD.shape[2]
    grouped = torch.unflatten(query_CHQD, 1, (shared, -1)).flatten(2, 3)
    attended = attend_masked(grouped, key_CKLD, value_CKLD, mask, rule)
    return torch.unflatten(attended, 2, (-1, num_rows)).flatten(1, 2)


AttentionInterface.register(ATTENTION, attend)
