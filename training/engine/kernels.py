"""Kernels that attend a whole packed row at once: flash attention, else flex attention.

Both need a GPU. On a CPU there is none, and `attention` goes through the row group by group.

Shapes: T tokens of the row, H query heads, K key heads, D head width; S sequences, L keys of all of
them one after the other (a shared prefix counts for everyone who continues it).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from itertools import accumulate
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers.utils.import_utils import is_flash_attn_2_available

from training.engine.scores import Rule
from training.engine.segments import Segments, list_sequences

if is_flash_attn_2_available():
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]
else:
    flash_attn_varlen_func = None

FLASH_TYPES = (torch.bfloat16, torch.float16)
FLASH_WIDTH = 256  # of a head, at most

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Segments, Rule], torch.Tensor]
Varlen = Callable[..., torch.Tensor]


@cache
def compile_flex() -> Any:
    """On first use: the compiler takes a second to be loaded."""
    return torch.compile(flex_attention, dynamic=True)


def choose_kernel(query_1HTD: torch.Tensor) -> Kernel | None:
    """What is installed for the device, the fastest first."""
    if query_1HTD.device.type != "cuda":
        return None
    fits = query_1HTD.dtype in FLASH_TYPES and query_1HTD.shape[-1] <= FLASH_WIDTH
    if flash_attn_varlen_func is not None and fits:
        return partial(attend_flash, flash_attn_varlen_func)
    return attend_flex if find_spec("triton") else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lengths:
    """Sequences as flash attention takes them: where each one begins, among queries and keys."""

    query_starts: torch.Tensor  # (S + 1,) int32
    key_starts: torch.Tensor
    longest_query: int
    longest_key: int
    key_places: torch.Tensor | None  # which tokens of the row the keys are; None: all, in order


def find_lengths(segments: Segments, device: torch.device) -> Lengths:
    if "lengths" not in segments.layouts:
        segments.layouts["lengths"] = _measure_lengths(segments, device)
    lengths: Lengths = segments.layouts["lengths"]
    return lengths


def _measure_lengths(segments: Segments, device: torch.device) -> Lengths:
    sequences = list_sequences(segments)
    queries = [each.length for each in sequences]
    keys = [each.depth + each.length for each in sequences]
    return Lengths(
        query_starts=_list_starts(queries, device),
        key_starts=_list_starts(keys, device),
        longest_query=max(queries),
        longest_key=max(keys),
        key_places=_list_keys(segments).to(device) if keys != queries else None,
    )


def _list_starts(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def _list_keys(segments: Segments) -> torch.Tensor:
    sequences = list_sequences(segments)
    paths = [[*(sequences[above] for above in each.above), each] for each in sequences]
    return torch.cat([torch.arange(part.start, part.stop) for path in paths for part in path])


def attend_flash(
    varlen: Varlen,
    query_1HTD: torch.Tensor,
    key_1KTD: torch.Tensor,
    value_1KTD: torch.Tensor,
    segments: Segments,
    rule: Rule,
) -> torch.Tensor:
    """[1, T, H, D]. `varlen` is flash-attn's: a sequence's queries are the last of its keys, and
    its window is counted from a token itself, to the left."""
    lengths = find_lengths(segments, query_1HTD.device)
    query, key, value = (
        states.squeeze(0).transpose(0, 1) for states in (query_1HTD, key_1KTD, value_1KTD)
    )
    if lengths.key_places is not None:
        key, value = key[lengths.key_places], value[lengths.key_places]
    attended_THD = varlen(
        query,
        key,
        value,
        lengths.query_starts,
        lengths.key_starts,
        lengths.longest_query,
        lengths.longest_key,
        softmax_scale=rule.scaling,
        causal=True,
        window_size=(-1 if rule.window is None else rule.window - 1, 0),
        softcap=rule.softcap or 0.0,
    )
    return attended_THD.unsqueeze(0)


def attend_flex(
    query_1HTD: torch.Tensor,
    key_1KTD: torch.Tensor,
    value_1KTD: torch.Tensor,
    segments: Segments,
    rule: Rule,
) -> torch.Tensor:
    """[1, T, H, D]. Compiled on a GPU; anywhere else the same arithmetic, slowly."""
    attend: Any = compile_flex() if query_1HTD.is_cuda else flex_attention
    attended_1HTD: torch.Tensor = attend(
        query_1HTD,
        key_1KTD,
        value_1KTD,
        score_mod=None if rule.softcap is None else partial(cap_score, rule.softcap),
        block_mask=find_blocks(segments, rule.window, query_1HTD.device),
        scale=rule.scaling,
        enable_gqa=query_1HTD.shape[1] != key_1KTD.shape[1],
    )
    return attended_1HTD.transpose(1, 2)


def cap_score(cap: float, score: torch.Tensor, *_place: torch.Tensor) -> torch.Tensor:
    """As in `scores`: cap * tanh(score / cap)."""
    return cap * torch.tanh(score / cap)


def find_blocks(segments: Segments, window: int | None, device: torch.device) -> BlockMask:
    if window not in segments.layouts:
        segments.layouts[window] = _make_blocks(segments, window, device)
    blocks: BlockMask = segments.layouts[window]
    return blocks


def _make_blocks(segments: Segments, window: int | None, device: torch.device) -> BlockMask:
    """A token sees what it continues and its own sequence up to itself, within the window."""
    sequences = list_sequences(segments)
    lengths = torch.tensor([each.length for each in sequences])
    owner_T = torch.arange(len(sequences)).repeat_interleave(lengths).to(device)
    place_T = torch.cat([each.depth + torch.arange(each.length) for each in sequences]).to(device)
    sees_SS = torch.eye(len(sequences), dtype=torch.bool)
    for number, each in enumerate(sequences):
        sees_SS[number, list(each.above)] = True
    sees_SS = sees_SS.to(device)

    def is_seen(
        _row: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        back = place_T[query] - place_T[key]
        seen = sees_SS[owner_T[query], owner_T[key]] & (back >= 0)
        return seen if window is None else seen & (back < window)

    total = len(place_T)
    return create_block_mask(is_seen, None, None, total, total, device=device.type)
