"""A histogram of tokens as bars of a drawing: the server draws, the page only colours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 1200.0
HEIGHT = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bin. Its rows are over the context, partly or wholly, where `is_over`."""

    least: int
    most: int
    num_rows: int
    share: float
    x: float
    y: float
    width: float
    height: float
    is_over: bool


def draw_histogram(result: Mapping[str, Any]) -> Sequence[Bar]:
    bins, total = result["bins"], max(1, result["num_rows"])
    tallest = max((rows for _, _, rows in bins), default=1) or 1
    slot = WIDTH / max(1, len(bins))
    return [
        Bar(
            least=least,
            most=most,
            num_rows=rows,
            share=rows / total,
            x=place * slot + 2,
            y=HEIGHT - rows / tallest * HEIGHT,
            width=slot - 4,
            height=rows / tallest * HEIGHT,
            is_over=most > result["context"],
        )
        for place, (least, most, rows) in enumerate(bins)
    ]
