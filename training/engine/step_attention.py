"""Attention of one decoding step: new keys and values go to the cache, queries read all of it.

Shapes: T tokens of the packed row, H query heads, K key-value heads, D head size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from training.engine.kvcache import Row
from training.engine.scores import Rule, attend_masked, find_seen

ATTENTION = "hone_generate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Tokens start..stop of the packed row are one sequence's next ones, `past` lie before them."""

    row: Row
    start: int
    stop: int

    @property
    def past(self) -> int:
        return self.row.length


class StepAttention:
    """Attention of one packed row of tokens: single tokens slab by slab, chunks one by one."""

    def __init__(self, chunks: list[Chunk], device: torch.device) -> None:
        singles = [chunk for chunk in chunks if chunk.stop - chunk.start == 1]
        by_slab: dict[int, list[Chunk]] = {}
        for chunk in singles:
            by_slab.setdefault(chunk.row.slab.capacity, []).append(chunk)
        self.parts: list[SlabAttention | ChunkAttention] = [
            *(SlabAttention(group, device) for group in by_slab.values()),
            *(ChunkAttention(each, device) for each in chunks if each.stop - each.start > 1),
        ]

    def attend(self, layer: int, qkv: tuple[Tensor, Tensor, Tensor], rule: Rule) -> Tensor:
        """Stores keys and values of shape (1, K, T, D), returns (1, T, H, D)."""
        query_THD, key_TKD, value_TKD = (tensor[0].transpose(0, 1) for tensor in qkv)
        out_THD = query_THD.new_empty(*query_THD.shape[:2], value_TKD.shape[-1])
        for part in self.parts:
            part.attend(layer, (query_THD, key_TKD, value_TKD), out_THD, rule)
        return out_THD[None]


class SlabAttention:
    """Every single token of one slab in one call: the heads that share keys are its queries."""

    def __init__(self, chunks: list[Chunk], device: torch.device) -> None:
        self.slab = chunks[0].row.slab
        self.num_rows = len(self.slab.rows)
        self.tokens = torch.tensor([chunk.start for chunk in chunks], device=device)
        self.slots = torch.tensor([chunk.row.slot for chunk in chunks], device=device)
        self.positions = torch.tensor([chunk.past for chunk in chunks], device=device)
        # Slots that do not decode now borrow the first token; what comes out for them is dropped.
        sources = [chunks[0].start] * self.num_rows
        lengths = [chunks[0].past + 1] * self.num_rows
        for chunk in chunks:
            sources[chunk.row.slot], lengths[chunk.row.slot] = chunk.start, chunk.past + 1
        self.sources = torch.tensor(sources, device=device)
        self.lengths = torch.tensor(lengths, device=device)
        # Kernels on CUDA want masks whose rows are a multiple of 16 long; all capacities are.
        self.longest = -(-max(lengths) // 16) * 16
        self.shortest = min(lengths)
        self.masks: dict[int | None, Tensor] = {}

    def attend(
        self,
        layer: int,
        qkv: tuple[Tensor, Tensor, Tensor],
        out_THD: Tensor,
        rule: Rule,
    ) -> None:
        query, key, value = qkv
        keys, values = self.slab.layer(layer, key, value)
        keys[self.slots, :, self.positions] = key[self.tokens]
        values[self.slots, :, self.positions] = value[self.tokens]
        grouped = query[self.sources].view(self.num_rows, keys.shape[1], -1, query.shape[-1])
        first = self._find_first(rule.window)
        answer = attend_masked(
            grouped,
            keys[: self.num_rows, :, first : self.longest],
            values[: self.num_rows, :, first : self.longest],
            self._mask(rule.window, query.dtype),
            rule,
        )
        out_THD[self.tokens] = answer.flatten(1, 2)[self.slots]

    def _find_first(self, window: int | None) -> int:
        """What lies before it, no token of a window sees."""
        return 0 if window is None else max(0, self.shortest - window) // 16 * 16

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        if window not in self.masks:
            first, device = self._find_first(window), self.lengths.device
            places = torch.arange(first, self.longest, device=device)
            seen = find_seen(self.lengths - 1, places, window)
            mask = torch.zeros(seen.shape, dtype=dtype, device=device)
            self.masks[window] = mask.masked_fill_(~seen, float("-inf"))[:, None, None]
        return self.masks[window]


class ChunkAttention:
    """Several tokens of one sequence, after what it has in the cache."""

    def __init__(self, chunk: Chunk, device: torch.device) -> None:
        self.chunk = chunk
        self.device = device
        self.masks: dict[int | None, Tensor] = {}

    def attend(
        self,
        layer: int,
        qkv: tuple[Tensor, Tensor, Tensor],
        out_THD: Tensor,
        rule: Rule,
    ) -> None:
        row, tokens = self.chunk.row, slice(self.chunk.start, self.chunk.stop)
        end = self.chunk.past + self.chunk.stop - self.chunk.start
        query, key, value = (tensor[tokens].transpose(0, 1) for tensor in qkv)
        keys, values = row.slab.layer(layer, qkv[1], qkv[2])
        keys[row.slot, :, self.chunk.past : end] = key
        values[row.slot, :, self.chunk.past : end] = value
        first = 0 if rule.window is None else max(0, self.chunk.past + 1 - rule.window)
        shared = query.shape[0] // keys.shape[1]
        answer = attend_masked(
            query[None],
            keys[row.slot, :, first:end].repeat_interleave(shared, 0)[None],
            values[row.slot, :, first:end].repeat_interleave(shared, 0)[None],
            self._mask(rule.window, first, end),
            rule,
        )
        out_THD[tokens] = answer[0].transpose(0, 1)

    def _mask(self, window: int | None, first: int, end: int) -> Tensor:
        if window not in self.masks:
            places = torch.arange(first, end, device=self.device)
            self.masks[window] = find_seen(places[self.chunk.past - first :], places, window)
        return self.masks[window]


def attend(  # noqa: PLR0913 - the signature is transformers'
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: Any,
    step: StepAttention,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    rule = Rule(scaling, sliding_window, softcap)
    return step.attend(layer, (query, key, value), rule), None


AttentionInterface.register(ATTENTION, attend)
