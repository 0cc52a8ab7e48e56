"""Folds: many runs of one group, many checkpoints of one run, and evaluations on one suite, become
one node each."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from webapp.core.templatetags.hone import percent, size
from webapp.lineage.graph import Graph, Node, build, walk

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
    graph = _fold_groups(graph, opened, standing, open_at)
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


def _fold_groups(
    graph: Graph,
    opened: Collection[str],
    standing: Collection[str],
    open_at: dict[str, list[str]],
) -> Graph:
    """With their checkpoints, and with how those were evaluated."""
    groups: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(dict)
    for node in graph.nodes.values():
        if node.group and node.id not in standing:
            below = walk(node.id, lambda each: graph.reached.get(each, ()), graph, None)
            if all(_goes_with_its_run(graph, each, standing) for each in below):
                groups[node.main, node.group][node.id] = below
    nodes = dict(graph.nodes)
    for (parent, group), runs in groups.items():
        key = f"{parent}.{group}"
        if len(runs) < FOLDED_FROM:
            continue
        if key in opened:
            open_at[parent].append(key)
            continue
        nodes[key] = fold_runs(key, [graph.nodes[each] for each in runs])
        for gone in set(runs).union(*runs.values()):
            del nodes[gone]
    return build(nodes.values())


def _goes_with_its_run(graph: Graph, node_id: str, standing: Collection[str]) -> bool:
    return graph.nodes[node_id].kind in ("checkpoint", "evaluation") and node_id not in standing


def fold_runs(key: str, runs: Sequence[Node]) -> Node:
    first = runs[0]
    stand = Counter(node.status for node in runs)
    said = ", ".join(f"{number} {status}" for status, number in stand.most_common())
    return Node(
        id=key,
        kind="run",
        label=first.group_name,
        detail=f"{len(runs)} runs: {said}",
        facts=[("names", ", ".join(node.label for node in runs[:6]))],
        main=first.main,
        others=list(dict.fromkeys(each for node in runs for each in node.others)),
        group=first.group,
        group_name=first.group_name,
        fold=key,
        count=len(runs),
    )


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
