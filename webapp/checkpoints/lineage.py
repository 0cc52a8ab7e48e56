"""Where weights came from and what became of them, as a tree with places to draw it at."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.apps import apps
from django.db.models import Exists, OuterRef, Prefetch, Q, QuerySet, prefetch_related_objects
from django.urls import reverse

from webapp.checkpoints.models import Checkpoint
from webapp.datasets.models import DatasetVersion
from webapp.runs.models import Run

MAX_ANCESTORS = 30
COLUMN, WIDTH = 232, 200  # pixels, of a column and of a node in it
ROW, HEIGHT = 56, 44
BEND = 8  # radius of an edge's corner


ICONS = {
    "dataset": "datasets",
    "base": "device",
    "run": "runs",
    "checkpoint": "checkpoints",
    "evaluation": "evals",
    "deployment": "deployments",
}


@dataclass(slots=True, kw_only=True)
class Node:
    """One thing of the graph. `kind`: dataset, base, run, checkpoint, evaluation, deployment."""

    kind: str
    key: str
    label: str
    detail: str
    url: str
    is_current: bool = False
    children: list["Node"] = field(default_factory=list)

    @property
    def icon(self) -> str:
        return ICONS[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    node: Node
    x: int
    y: int
    parent: "Placed | None"

    @property
    def edge(self) -> str:
        """From the parent's right side to this one's left; those of many children share a trunk."""
        if self.parent is None:
            return ""
        start, end = self.parent.x + WIDTH, self.x
        middle, top = (start + end) // 2, self.parent.y + HEIGHT // 2
        bottom = self.y + HEIGHT // 2
        if top == bottom:
            return f"M{start} {top}H{end}"
        turn = f"Q{middle} {bottom} {middle + BEND} {bottom}"  # children stand below, never above
        return f"M{start} {top}H{middle}V{bottom - BEND}{turn}H{end}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    placed: Sequence[Placed]
    width: int
    height: int


def lay_out(roots: Iterable[Node]) -> Graph:
    """Columns by depth; a leaf takes the next line, and a parent stands beside its first child."""
    placed: list[Placed] = []
    line = 0
    # Depth first by hand: a run branched a thousand times in a row must not exhaust the stack.
    waiting: list[tuple[Node, int, Placed | None]] = []
    waiting.extend((root, 0, None) for root in reversed(list(roots)))
    while waiting:
        node, depth, parent = waiting.pop()
        spot = Placed(node=node, x=depth * COLUMN, y=line * ROW, parent=parent)
        placed.append(spot)
        waiting.extend((child, depth + 1, spot) for child in reversed(node.children))
        if not node.children:
            line += 1
    deepest = max((spot.x for spot in placed), default=0)
    return Graph(placed=placed, width=deepest + WIDTH, height=max(line * ROW - ROW + HEIGHT, 0))


def read_project(runs: QuerySet[Run]) -> list[Node]:
    """A tree for each dataset version (or client's run) that something began with."""
    found = {run.pk: run for run in runs.select_related("dataset_version__dataset", "base_model")}
    checkpoints = list(read_checkpoints(run_ids=list(found)))
    return _grow(list(found.values()), checkpoints)


def read_checkpoints(*, run_ids: Sequence[str]) -> Iterable[Checkpoint]:
    """Those a person would look for; deleted and passing ones only where a run began with them."""
    has_branch = Exists(Run.objects.filter(parent=OuterRef("pk")))
    shown = Q(deleted_at=None, is_ephemeral=False) | has_branch
    return (
        Checkpoint.objects.filter(shown, run__in=run_ids)
        .prefetch_related(Prefetch("evaluations", queryset=read_evaluations()), "deployments")
        .order_by("step", "created_at")
    )


def read_evaluations() -> QuerySet[Any]:
    """Without the suites' items, which may be megabytes. By name: that app stands above this."""
    evaluations = apps.get_model("evals", "Evaluation")._default_manager
    return evaluations.select_related("suite").defer("suite__items").order_by("-created_at")


def read_around(checkpoint: Checkpoint) -> list[Node]:
    """One checkpoint: the chain it comes from, and everything that came of it."""
    prefetch_related_objects([checkpoint], Prefetch("evaluations", queryset=read_evaluations()))
    here = checkpoint_node(checkpoint, is_current=True)
    branches = checkpoint.branches.select_related("dataset_version__dataset", "base_model")
    runs = list(branches.order_by("created_at"))
    of_run = defaultdict(list)
    for each in read_checkpoints(run_ids=[run.pk for run in runs]):
        of_run[each.run_id].append(checkpoint_node(each))
    here.children += [run_node(run, of_run[run.pk]) for run in runs]
    return [_climb(checkpoint, here)]


def _climb(checkpoint: Checkpoint, node: Node) -> Node:
    for _ in range(MAX_ANCESTORS):
        run = Run.objects.select_related("dataset_version__dataset", "base_model", "parent").get(
            pk=checkpoint.run_id
        )
        node = run_node(run, [node])
        if run.parent is None:
            return root_node(run, [node])
        checkpoint = run.parent
        parent = checkpoint_node(checkpoint, with_uses=False)
        parent.children.append(node)
        node = parent
    return node


def _grow(runs: Sequence[Run], checkpoints: Iterable[Checkpoint]) -> list[Node]:
    of_run: dict[str, list[Node]] = defaultdict(list)
    by_id = {}
    for checkpoint in checkpoints:
        by_id[checkpoint.pk] = node = checkpoint_node(checkpoint)
        of_run[checkpoint.run_id].append(node)
    roots: dict[str, Node] = {}
    for run in runs:
        node = run_node(run, of_run[run.pk])
        if run.parent_id in by_id:
            by_id[run.parent_id].children.append(node)
            continue
        root = root_node(run, [])
        roots.setdefault(root.key, root).children.append(node)
    return list(roots.values())


def root_node(run: Run, children: list[Node]) -> Node:
    if run.dataset_version is None:
        return Node(
            kind="base",
            key=run.base_model_id,
            label=run.base_model.name,
            detail="a client's own data",
            url="",
            children=children,
        )
    return dataset_node(run.dataset_version, children)


def dataset_node(version: DatasetVersion, children: list[Node]) -> Node:
    return Node(
        kind="dataset",
        key=version.pk,
        label=str(version),
        detail=f"{version.num_rows:,} rows",
        url=reverse("version", args=[version.pk]),
        children=children,
    )


def run_node(run: Run, children: list[Node]) -> Node:
    data = f" on {run.dataset_version}" if run.parent_id and run.dataset_version else ""
    return Node(
        kind="run",
        key=run.pk,
        label=run.name,
        detail=f"{run.status}, {run.step} steps{data}",
        url=reverse("run", args=[run.pk]),
        children=children,
    )


def checkpoint_node(
    checkpoint: Checkpoint, *, is_current: bool = False, with_uses: bool = True
) -> Node:
    form = f" {checkpoint.type}" if checkpoint.is_full else ""
    kind = "deleted" if checkpoint.deleted_at else f"{checkpoint.kind}{form}"
    sealed = " (age)" if checkpoint.is_encrypted else ""
    return Node(
        kind="checkpoint",
        key=checkpoint.pk,
        label=checkpoint.name,
        detail=f"step {checkpoint.step}, {kind}{sealed}",
        url=reverse("checkpoint", args=[checkpoint.pk]),
        is_current=is_current,
        children=_use_nodes(checkpoint) if with_uses else [],
    )


def _use_nodes(checkpoint: Checkpoint) -> list[Node]:
    evaluations: Iterable[Any] = checkpoint.evaluations.all()
    deployments: Iterable[Any] = checkpoint.deployments.all()
    return [
        Node(
            kind="evaluation",
            key=each.pk,
            label=each.suite.name,
            detail=describe_score(each),
            url=reverse("evaluation", args=[each.pk]),
        )
        for each in evaluations
    ] + [
        Node(
            kind="deployment",
            key=each.pk,
            label=each.name,
            detail=each.status,
            url=reverse("deployment", args=[each.pk]),
        )
        for each in deployments
    ]


def describe_score(evaluation: Any) -> str:
    """The suite's first grader is the score."""
    names = [grader["name"] for grader in evaluation.suite.graders]
    score = evaluation.scores.get(names[0]) if names else None
    if score is None:
        return str(evaluation.status)
    return f"{100 * score:.1f} % {names[0].replace('_', ' ')}"
