"""Datums laid end to end in rows of tokens, up to a budget; what several begin with, only once.

What a causal model makes of a prefix does not depend on what follows. So datums of a run that
begin alike (samples of one prompt, chosen and rejected, one system message) share its tokens: a
pack is a forest, whose nodes are runs of tokens and whose paths from a root down are the datums.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from training.engine.lora import Slice
from training.engine.segments import Group, Segments
from training.routing import FREE
from training.types import Datum, IntArray

MIN_SHARED = 16  # tokens; shorter ones save less than another call of attention costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """The datum with this index in the request of this run."""

    run: str
    index: int
    datum: Datum

    @property
    def length(self) -> int:
        return len(self.datum.tokens)

    @property
    def order(self) -> tuple[int, str, bool, bytes]:
        """By targets a position and by run, then token by token: items that begin alike become
        neighbours. Tokens that are routed differently are different tokens."""
        tokens, routes = self.datum.tokens, self.datum.routes
        if routes is not None:
            tokens = np.column_stack([tokens, routes.reshape(len(tokens), -1)])
        key = tokens.astype(">i8").tobytes()
        return self.datum.num_targets, self.run, routes is not None, key


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Tokens from position `depth` on, after those of the nodes at `above`."""

    tokens: IntArray
    routes: IntArray | None
    depth: int
    above: tuple[int, ...]


class Forest:
    """The nodes of a pack, and every item's path through them."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.nodes: list[Node] = []
        self.paths: list[tuple[int, ...]] = [()] * len(items)

    def grow(self, members: Sequence[int], depth: int, above: tuple[int, ...]) -> None:
        """Members are in order and equal up to `depth`. Equally long loners end as neighbours."""
        clusters = split_clusters(self.items, members, depth)
        for cluster in sorted(clusters, key=self._rank):
            first, last = self.items[cluster[0]], self.items[cluster[-1]]
            stop = count_shared(first, last)  # the length, where the cluster is one item
            path = (*above, len(self.nodes))
            self.nodes.append(cut_node(first.datum, depth, stop, above))
            for member in cluster:
                self.paths[member] = path
            self.grow([m for m in cluster if self.items[m].length > stop], stop, path)

    def _rank(self, cluster: Sequence[int]) -> tuple[bool, int]:
        return len(cluster) == 1, self.items[cluster[0]].length


def cut_node(datum: Datum, depth: int, stop: int, above: tuple[int, ...]) -> Node:
    routes = None if datum.routes is None else datum.routes[depth:stop]
    return Node(tokens=datum.tokens[depth:stop], routes=routes, depth=depth, above=above)


def split_clusters(items: Sequence[Item], members: Sequence[int], depth: int) -> list[list[int]]:
    """Neighbours that share enough beyond `depth` stay together."""
    clusters = [[member] for member in members[:1]]
    for left, right in pairwise(members):
        if count_shared(items[left], items[right]) >= depth + MIN_SHARED:
            clusters[-1].append(right)
        else:
            clusters.append([right])
    return clusters


def count_shared(left: Item, right: Item) -> int:
    length = min(left.length, right.length)
    one, other = left.datum, right.datum
    differs = one.tokens[:length] != other.tokens[:length]
    if one.routes is not None and other.routes is not None:
        differs |= (one.routes[:length] != other.routes[:length]).any(axis=(1, 2))
    elif one.routes is not None or other.routes is not None:
        return 0
    return int(differs.argmax()) if differs.any() else length


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The items of one run in a pack. `laid`: their tokens in the row; `told`: all positions of
    all of them, one item after the other, where shared tokens count every time."""

    laid: Slice
    told: Slice
    items: Sequence[Item]

    def split(self) -> Iterator["Part"]:
        """A part for each item."""
        start = self.told.start
        for item in self.items:
            told = Slice(self.told.run, start, start + item.length)
            yield Part(laid=self.laid, told=told, items=[item])
            start += item.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A pack: T tokens as they are laid, U positions of the items as they are told."""

    parts: Sequence[Part]
    segments: Segments
    tokens: IntArray  # (T,)
    routes: IntArray | None  # (T, L, k), where any datum has some
    positions: IntArray  # (T,)
    places: IntArray  # (U,): where in the row each position lies


def lay_out(pack: Sequence[Item]) -> Layout:
    forest = Forest(pack)
    spans = []
    for run, same in groupby(range(len(pack)), key=lambda place: pack[place].run):
        members, first = list(same), len(forest.nodes)
        forest.grow(members, 0, ())
        spans.append((run, members, first, len(forest.nodes)))
    starts = [0, *accumulate(len(node.tokens) for node in forest.nodes)]
    told = [0, *accumulate(item.length for item in pack)]
    return Layout(
        parts=[
            Part(
                laid=Slice(run, starts[first], starts[stop]),
                told=Slice(run, told[members[0]], told[members[-1] + 1]),
                items=[pack[member] for member in members],
            )
            for run, members, first, stop in spans
        ],
        segments=group_nodes(forest.nodes),
        tokens=np.concatenate([node.tokens for node in forest.nodes]),
        routes=join_routes(forest.nodes),
        positions=np.concatenate(
            [node.depth + np.arange(len(node.tokens)) for node in forest.nodes]
        ),
        places=np.concatenate([locate(forest, path, starts) for path in forest.paths]),
    )


def join_routes(nodes: Sequence[Node]) -> IntArray | None:
    """Tokens without routes are free: their layers choose."""
    known = next((node.routes for node in nodes if node.routes is not None), None)
    if known is None:
        return None
    free = (np.full((len(node.tokens), *known.shape[1:]), FREE) for node in nodes)
    pieces = zip((node.routes for node in nodes), free, strict=True)
    joined = np.concatenate([own if routes is None else routes for routes, own in pieces])
    return joined.astype(np.int64, copy=False)


def locate(forest: Forest, path: Sequence[int], starts: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate(
        [starts[place] + np.arange(len(forest.nodes[place].tokens)) for place in path]
    )


def group_nodes(nodes: Sequence[Node]) -> Segments:
    """Neighbours without relatives that are equally long are attended in one call."""
    inner = {place for node in nodes for place in node.above}
    groups: list[Group] = []
    group_of: list[int] = []
    loner_length = 0
    for place, node in enumerate(nodes):
        length = len(node.tokens)
        is_loner = not node.above and place not in inner
        if is_loner and length == loner_length:
            groups[-1] = Group(groups[-1].count + 1, length, ())
        else:
            groups.append(Group(1, length, tuple(group_of[above] for above in node.above)))
        loner_length = length if is_loner else 0
        group_of.append(len(groups) - 1)
    return Segments(tuple(groups))
