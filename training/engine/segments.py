"""How a packed row is cut into sequences, and what each of them continues."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Group:
    """`count` neighbours of equal length; one that has groups `above` continues them."""

    count: int
    length: int
    above: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Segments:
    """How a packed row is cut, and what each piece may look back on besides itself.

    What one layer has made of it is kept with it for the others, which have the same.
    """

    groups: tuple[Group, ...]
    masks: dict[object, torch.Tensor] = field(default_factory=dict, compare=False)  # of windows
    layouts: dict[object, Any] = field(default_factory=dict, compare=False)  # as kernels take them


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """Tokens `start` to `stop` of a row. Others that it continues lie at the places `above`, in
    order; `depth` is how many tokens they are."""

    start: int
    stop: int
    above: tuple[int, ...]
    depth: int

    @property
    def length(self) -> int:
        return self.stop - self.start


def list_sequences(segments: Segments) -> list[Sequence]:
    """Each neighbour of a group by itself."""
    found: list[Sequence] = []
    place_of: list[int] = []  # of a group's first sequence: only groups of one are continued
    for group in segments.groups:
        place_of.append(len(found))
        above = tuple(place_of[each] for each in group.above)
        found.extend(_cut(group, found[-1].stop if found else 0, above, found))
    return found


def _cut(
    group: Group, start: int, above: tuple[int, ...], before: list[Sequence]
) -> Iterator[Sequence]:
    depth = sum(before[each].length for each in above)
    for number in range(group.count):
        first = start + number * group.length
        yield Sequence(start=first, stop=first + group.length, above=above, depth=depth)
