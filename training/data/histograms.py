"""How long rows are: counts by bins that double, and what is too long for a context."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """`bins`: (least, most, rows), each twice as wide as the one before it."""

    bins: tuple[tuple[int, int, int], ...]
    num_rows: int
    num_tokens: int
    mean: float
    median: float
    p95: float
    longest: int
    context: int
    num_over: int  # longer than the context

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def count_lengths(lengths: Iterable[int], *, context: int) -> Histogram:
    values = np.fromiter(lengths, dtype=np.int64)
    found = Counter((np.maximum(values, 1) - 1).astype(np.uint64).tolist())
    by_bin: Counter[int] = Counter()
    for value, number in found.items():
        by_bin[int(value).bit_length()] += number
    # Up to the context, so that a glance tells how far the rows are from it.
    last = max(max(by_bin, default=0), (max(context, 1) - 1).bit_length())
    bins = [
        (2 ** (place - 1) + 1 if place else 0, 2**place, by_bin[place])
        for place in range(min(by_bin, default=0), last + 1)
    ]
    empty = not len(values)
    return Histogram(
        bins=tuple(bins),
        num_rows=len(values),
        num_tokens=int(values.sum()),
        mean=0.0 if empty else float(values.mean()),
        median=0.0 if empty else float(np.median(values)),
        p95=0.0 if empty else float(np.percentile(values, 95)),
        longest=0 if empty else int(values.max()),
        context=context,
        num_over=int((values > context).sum()),
    )
