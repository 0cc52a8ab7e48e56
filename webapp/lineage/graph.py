"""What came of what: nodes and edges, walked without a database."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

# In the order in which what came of one node is drawn: what ends there first, branches last.
KINDS = ("base", "evaluation", "deployment", "alias", "checkpoint", "dataset", "run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One thing that was made, or a fold of several. `main` is what it is drawn beside, `others`
    are what it came of too."""

    id: str
    kind: str
    label: str
    detail: str
    url: str = ""
    facts: Sequence[tuple[str, str]] = ()
    main: str = ""
    others: Sequence[str] = ()
    created_at: datetime | None = None
    suite: str = ""  # of an evaluation: what it is folded by
    group: str = ""  # of a run: likewise
    group_name: str = ""
    status: str = ""  # of a run
    score: float | None = None
    size_bytes: int = 0
    step: int | None = None
    is_gone: bool = False  # a checkpoint whose files were deleted
    fold: str = ""  # set: it stands for `count` nodes, and this opens them
    count: int = 1

    @property
    def parents(self) -> Sequence[str]:
        return (self.main, *self.others) if self.main else tuple(self.others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Nodes by their id, those of one parent in the order in which they are drawn."""

    nodes: Mapping[str, Node]
    children: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by main parent
    reached: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by any parent

    def find_roots(self) -> list[str]:
        return [node.id for node in self.nodes.values() if node.main not in self.nodes]


def build(nodes: Iterable[Node]) -> Graph:
    by_id = {node.id: node for node in nodes}
    children: dict[str, list[str]] = defaultdict(list)
    reached: dict[str, list[str]] = defaultdict(list)
    for node in by_id.values():
        if node.main in by_id:
            children[node.main].append(node.id)
        for parent in dict.fromkeys(node.parents):
            if parent in by_id:
                reached[parent].append(node.id)
    for ids in children.values():
        ids.sort(key=lambda each: KINDS.index(by_id[each].kind))
    return Graph(nodes=by_id, children=children, reached=reached)


def focus(graph: Graph, node_id: str, *, depth: int | None) -> Graph:
    """One node, what it comes from and what came of it, as many edges away as `depth` says."""
    up = walk(node_id, lambda each: graph.nodes[each].parents, graph, depth)
    down = walk(node_id, lambda each: graph.reached.get(each, ()), graph, depth)
    kept = {node_id, *up, *down}
    return build(_hang(node, kept) for node in graph.nodes.values() if node.id in kept)


def _hang(node: Node, kept: set[str]) -> Node:
    """Where its main parent is left out, another that is there takes its place."""
    if not node.main or node.main in kept:
        return node
    others = [each for each in node.others if each in kept]
    return replace(node, main=others[0], others=others[1:]) if others else node


def walk(
    start: str, step: Callable[[str], Iterable[str]], graph: Graph, depth: int | None
) -> set[str]:
    """Everything that is reached, but for what is not in the graph."""
    seen: set[str] = set()
    ring, far = [start], 0
    while ring and (depth is None or far < depth):
        following = [each for node_id in ring for each in step(node_id)]
        ring = [each for each in dict.fromkeys(following) if each in graph.nodes]
        ring = [each for each in ring if each not in seen]
        seen.update(ring)
        far += 1
    return seen


def search(graph: Graph, text: str) -> list[str]:
    """Ids of nodes whose name, id or facts have the text."""
    wanted = text.casefold()
    return [node.id for node in graph.nodes.values() if wanted in describe(node).casefold()]


def describe(node: Node) -> str:
    """Everything that is known of it, in a line."""
    facts = "; ".join(f"{name} {value}" for name, value in node.facts)
    parts = [f"{node.kind} {node.label}", node.detail, facts, "" if node.fold else node.id]
    return ", ".join(part for part in parts if part)
