"""Where each node of the graph stands: columns by depth, lines that never cross a tree's edge."""

from collections.abc import Sequence
from dataclasses import dataclass

from webapp.lineage.graph import Graph, Node

COLUMN, WIDTH = 240, 200  # pixels, of a column and of a node in it
ROW, HEIGHT = 60, 44
BEND = 8  # radius of an edge's corner
MOST_SIDE_EDGES = 40  # more of them are only told: they would cross everything


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    node: Node
    column: int
    line: int

    @property
    def x(self) -> int:
        return self.column * COLUMN

    @property
    def y(self) -> int:
        return self.line * ROW


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    start: Spot
    end: Spot
    is_side: bool = False  # a second parent's

    @property
    def is_level(self) -> bool:
        """Between neighbours on one line: it crosses nothing."""
        return self.start.line == self.end.line and self.start.column + 1 == self.end.column

    @property
    def path(self) -> str:
        """From the right of one to the left of the other; those of one parent share a trunk."""
        left, right = self.start.x + WIDTH, self.end.x
        top, bottom = self.start.y + HEIGHT // 2, self.end.y + HEIGHT // 2
        if top == bottom and right > left:
            return f"M{left} {top}H{right}"
        if self.is_side:
            reach = max(40, abs(right - left) // 2)
            return f"M{left} {top}C{left + reach} {top} {right - reach} {bottom} {right} {bottom}"
        middle = (left + right) // 2
        turn = f"Q{middle} {bottom} {middle + BEND} {bottom}"  # children stand below, never above
        return f"M{left} {top}H{middle}V{bottom - BEND}{turn}H{right}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    spots: Sequence[Spot]
    edges: Sequence[Edge]
    num_hidden: int  # nodes that are not drawn

    @property
    def has_side_edges(self) -> bool:
        return any(edge.is_side for edge in self.edges)

    @property
    def width(self) -> int:
        return max((spot.x for spot in self.spots), default=0) + WIDTH

    @property
    def height(self) -> int:
        return max((spot.y + HEIGHT for spot in self.spots), default=0)


def lay_out(graph: Graph, *, most: int, with_sides: bool = True) -> Layout:
    """A leaf takes the next line, and a parent stands beside its first child.

    What a branch brings in of its own, such as other data, stands left of it on its line. Depth
    first by hand: a run branched a thousand times in a row must not exhaust the stack.
    """
    beside = find_beside(graph)
    places: dict[str, Spot] = {}
    line = 0
    waiting = [(root, 0) for root in reversed(graph.find_roots()) if root not in beside.values()]
    while waiting and len(places) < most:
        node_id, column = waiting.pop()
        node = graph.nodes[node_id]
        if node_id in beside:
            if node.main in places and places[node.main].line == line:
                line += 1
            brought = graph.nodes[beside[node_id]]
            places[brought.id] = Spot(node=brought, column=column - 1, line=line)
        places[node_id] = Spot(node=node, column=column, line=line)
        children = graph.children.get(node_id, ())
        waiting.extend((child, column + 1) for child in reversed(children))
        if not children:
            line += 1
    edges = _list_tree_edges(places)
    edges += [edge for edge in _list_side_edges(places) if with_sides or edge.is_level]
    return Layout(
        spots=list(places.values()), edges=edges, num_hidden=len(graph.nodes) - len(places)
    )


def find_beside(graph: Graph) -> dict[str, str]:
    """By run: the one root that nothing else comes of, and that it has as a second parent."""
    found = {}
    for node in graph.nodes.values():
        if node.main not in graph.nodes:
            continue
        for other in node.others:
            is_root = other in graph.nodes and not graph.nodes[other].parents
            if is_root and graph.reached[other] == [node.id]:
                found[node.id] = other
                break
    return found


def _list_tree_edges(places: dict[str, Spot]) -> list[Edge]:
    return [
        Edge(start=places[spot.node.main], end=spot)
        for spot in places.values()
        if spot.node.main in places
    ]


def _list_side_edges(places: dict[str, Spot]) -> list[Edge]:
    edges = [
        Edge(start=places[other], end=spot, is_side=True)
        for spot in places.values()
        for other in spot.node.others
        if other in places and other != spot.node.main
    ]
    return edges if len(edges) <= MOST_SIDE_EDGES else []
