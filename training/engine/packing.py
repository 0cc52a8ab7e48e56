"""Datums laid end to end in rows of tokens, up to a budget; one run's datums lie together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from training.engine.lora import Slice
from training.types import Datum


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """The datum with this index in the request of this run."""

    run: str
    index: int
    datum: Datum

    @property
    def length(self) -> int:
        return len(self.datum.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The items of one run in a pack, at the tokens of its slice."""

    where: Slice
    items: Sequence[Item]


def pack_items(items: Sequence[Item], token_budget: int) -> Iterator[list[Item]]:
    """By run, then by length: equally long neighbours share one attention call.

    A sequence longer than the budget makes a pack of its own.
    """
    pack: list[Item] = []
    for item in sorted(items, key=lambda item: (item.run, item.length)):
        if pack and sum(other.length for other in pack) + item.length > token_budget:
            yield pack
            pack = []
        pack.append(item)
    if pack:
        yield pack


def split_parts(pack: Sequence[Item]) -> list[Part]:
    parts, start = [], 0
    for run, same in groupby(pack, key=lambda item: item.run):
        items = list(same)
        stop = start + sum(item.length for item in items)
        parts.append(Part(where=Slice(run, start, stop), items=items))
        start = stop
    return parts
