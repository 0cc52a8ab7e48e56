"""Folds: many checkpoints of one run, and evaluations on one suite, become one node each."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from webapp.core.templatetags.hone import percent, size
from webapp.lineage.graph import Graph, Node, build

FOLDED_FROM = 4  # fewer are as quick to read one by one
EVALUATIONS_FOLDED_FROM = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """`opened`: folds that are open now, by the node that they hang on."""

    graph: Graph
    opened: dict[str, list[str]]


def fold(graph: Graph, *, opened: Collection[str], standing: Collection[str] = ()) -> Folded:
    """What something came of stands alone, as does what is looked at: `standing`."""
    open_at: dict[str, list[str]] = defaultdict(list)
    nodes = dict(graph.nodes)
    for run in [node for node in graph.nodes.values() if node.kind == "run"]:
        plain = _list_plain(graph, run.id, standing)
        if len(plain) < FOLDED_FROM:
            continue
        if run.id in opened:
            open_at[run.id].append(run.id)
            continue
        folded = fold_checkpoints(run.id, plain)
        nodes[folded.id] = folded
        for checkpoint in plain:
            del nodes[checkpoint.id]
            for child in graph.children.get(checkpoint.id, ()):
                nodes[child] = replace(graph.nodes[child], main=folded.id)
    return _fold_evaluations(build(nodes.values()), opened, standing, open_at)


def _list_plain(graph: Graph, run_id: str, standing: Collection[str]) -> list[Node]:
    """Checkpoints that nothing but evaluations came of."""
    return [
        graph.nodes[each]
        for each in graph.children.get(run_id, ())
        if graph.nodes[each].kind == "checkpoint"
        and each not in standing
        and all(_may_fold(graph, child, standing) for child in graph.reached.get(each, ()))
    ]


def _may_fold(graph: Graph, node_id: str, standing: Collection[str]) -> bool:
    return graph.nodes[node_id].kind == "evaluation" and node_id not in standing


def fold_checkpoints(run_id: str, plain: Sequence[Node]) -> Node:
    steps = [node.step for node in plain if node.step is not None]
    total = size(sum(node.size_bytes for node in plain))
    num_gone = sum(node.is_gone for node in plain)
    total += f", {num_gone} deleted" if num_gone else ""
    return Node(
        id=f"{run_id}.checkpoints",
        kind="checkpoint",
        label=f"{len(plain)} checkpoints",
        detail=f"steps {min(steps)} to {max(steps)}, {total}" if steps else total,
        facts=[("names", ", ".join(node.label for node in plain[:6]))],
        main=run_id,
        fold=run_id,
        count=len(plain),
        size_bytes=sum(node.size_bytes for node in plain),
    )


def _fold_evaluations(
    graph: Graph,
    opened: Collection[str],
    standing: Collection[str],
    open_at: dict[str, list[str]],
) -> Folded:
    groups: dict[tuple[str, str], list[Node]] = defaultdict(list)
    for node in graph.nodes.values():
        if node.kind == "evaluation" and node.id not in standing:
            groups[node.main, node.suite].append(node)
    nodes = dict(graph.nodes)
    for (parent, suite), evaluations in groups.items():
        if len(evaluations) < EVALUATIONS_FOLDED_FROM:
            continue
        key = f"{parent}.{suite}"
        if key in opened:
            open_at[parent].append(key)
            continue
        for each in evaluations:
            del nodes[each.id]
        nodes[key] = fold_evaluations(key, parent, evaluations)
    return Folded(graph=build(nodes.values()), opened=open_at)


def fold_evaluations(key: str, parent: str, evaluations: Sequence[Node]) -> Node:
    scores = [node.score for node in evaluations if node.score is not None]
    best = f", best {percent(max(scores))}" if scores else ""
    return Node(
        id=key,
        kind="evaluation",
        label=evaluations[0].label,
        detail=f"{len(evaluations)} times{best}",
        main=parent,
        suite=evaluations[0].suite,
        score=max(scores, default=None),
        fold=key,
        count=len(evaluations),
    )
