"""The rows of a project as a graph. The same few queries, whatever the project's size."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Exists, Model, OuterRef, Q, QuerySet

from webapp.accounts.models import Project
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.retention_needs import find_checkpoint_ids
from webapp.core.errors import NotFound
from webapp.datasets.models import DatasetVersion
from webapp.deployments.models import Deployment
from webapp.evals.models import Alias, Evaluation
from webapp.fleet.models import BaseModel
from webapp.lineage.graph import Graph, Node, build
from webapp.lineage.nodes import (
    alias_node,
    base_node,
    checkpoint_node,
    dataset_node,
    deployment_node,
    evaluation_node,
    run_node,
)
from webapp.runs.models import Run

MOST_RUNS = 500
MOST_ROWS = 5000  # of any other kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    graph: Graph
    left_out: Sequence[str]  # kinds of which the project has more than were read


# How a row of each kind says when its run began, by the beginning of its id.
ANCHORS: dict[str, tuple[type[Model], str]] = {
    "run": (Run, "created_at"),
    "ckpt": (Checkpoint, "run__created_at"),
    "dsv": (DatasetVersion, "created_at"),
    "eval": (Evaluation, "checkpoint__run__created_at"),
    "dep": (Deployment, "checkpoint__run__created_at"),
    "alias": (Alias, "checkpoint__run__created_at"),
}


def find_anchor(projects: QuerySet[Project], node_id: str) -> tuple[str, datetime | None]:
    """Of which project a node is, and around which moment its relatives were made."""
    if node_id.startswith("base-"):
        return "", None
    model, column = ANCHORS.get(node_id.partition("-")[0], (Run, "created_at"))
    rows = model._default_manager.filter(pk=node_id[:80], project__in=projects)
    found = rows.values_list("project", column).first()
    if found is None:
        raise NotFound(f"There is nothing with the id {node_id[:60]} in this project.")
    project_id, around = found
    return project_id, around


def read_graph(project_id: str, *, around: datetime | None = None) -> Reading:
    """The newest runs, or those before and after a moment: what came of something is newer."""
    runs, has_more = _read_runs(project_id, around)
    run_ids = [run.pk for run in runs]
    data_of = {run.pk: run.dataset_version_id for run in runs}
    checkpoints = _read_checkpoints(run_ids)
    known = {checkpoint.pk for checkpoint in checkpoints}
    taught = _read_teachers(run_ids, known)
    wanted = {run.parent_id for run in runs if run.parent_id} - known
    foreign = list(Checkpoint.objects.filter(pk__in=wanted).defer("probe", "user_metadata"))
    checkpoints = [*foreign, *checkpoints]
    uses = list(_read_uses(project_id, [checkpoint.pk for checkpoint in checkpoints]))
    bases = {run.base_model_id for run in runs} | {
        use.base_model_id for use in uses if use.base_model_id
    }
    nodes = [
        *(dataset_node(each, project_id) for each in _read_versions(project_id, runs)),
        *(
            base_node(each)
            for each in BaseModel.objects.filter(pk__in=bases).prefetch_related("names")
        ),
        *(
            run_node(run, inherits=_inherits_data(run, data_of), taught_by=taught[run.pk])
            for run in runs
        ),
        *(checkpoint_node(each, project_id) for each in checkpoints),
        *(use.node for use in uses),
    ]
    full = Counter(node.kind for node in nodes)
    left_out = [f"{kind}s" for kind in ("checkpoint", "evaluation") if full[kind] >= MOST_ROWS]
    left_out = ["runs", *left_out] if has_more else left_out
    return Reading(graph=build(_drop_unused(nodes)), left_out=left_out)


def _read_teachers(run_ids: Sequence[str], known: Collection[str]) -> dict[str, list[str]]:
    """Checkpoints that the settings of runs name: teachers, judges, reward models."""
    configs = Run.objects.filter(pk__in=run_ids).exclude(recipe="").values_list("pk", "config")
    named = {pk: [*find_checkpoint_ids(config)] for pk, config in configs}
    return defaultdict(list, {pk: [i for i in ids if i in known] for pk, ids in named.items()})


def _inherits_data(run: Run, data_of: Mapping[str, str | None]) -> bool:
    """A branch that goes on with its parent's data needs no line of its own to it."""
    return run.parent is not None and data_of.get(run.parent.run_id) == run.dataset_version_id


def _drop_unused(nodes: Iterable[Node]) -> list[Node]:
    """A base model from which nothing begins here says nothing."""
    kept = list(nodes)
    used = {node.main for node in kept}
    return [node for node in kept if node.kind != "base" or node.id in used]


def _read_runs(project_id: str, around: datetime | None) -> tuple[list[Run], bool]:
    rows = (
        Run.objects.filter(project=project_id)
        .select_related("dataset_version__dataset", "parent", "group", "after")
        .only(*RUN_COLUMNS)
    )
    if around is None:
        found = list(rows.order_by("-created_at", "pk")[: MOST_RUNS + 1])
        return found[:MOST_RUNS], len(found) > MOST_RUNS
    half = MOST_RUNS // 2
    before = list(rows.filter(created_at__lte=around).order_by("-created_at", "pk")[: half + 1])
    after = list(rows.filter(created_at__gt=around).order_by("created_at", "pk")[: half + 1])
    is_cut = len(before) > half or len(after) > half
    return [*reversed(after[:half]), *before[:half]], is_cut


RUN_COLUMNS = (
    *("project", "name", "origin", "recipe", "status", "step", "last_loss", "rank", "created_at"),
    *("base_model", "dataset_version__number", "dataset_version__dataset__name"),
    *("parent__name", "parent__step", "parent__run", "group__name", "after__name"),
)


def _read_checkpoints(run_ids: Sequence[str]) -> list[Checkpoint]:
    """Those a person would look for; deleted and passing ones only where a run began with them, or
    something still names them."""
    has_branch = Exists(Run.objects.filter(parent=OuterRef("pk")))
    is_used = Exists(Evaluation.objects.filter(checkpoint=OuterRef("pk")))
    shown = Q(deleted_at=None, is_ephemeral=False) | has_branch | is_used
    rows = Checkpoint.objects.filter(shown, run__in=run_ids).defer("probe", "user_metadata")
    newest = list(rows.order_by("-created_at", "pk")[:MOST_ROWS])
    return sorted(newest, key=lambda each: (each.step, each.created_at, each.pk))


def _read_versions(project_id: str, runs: Iterable[Run]) -> list[DatasetVersion]:
    """Those that runs learned from, and what is there to learn from."""
    status = DatasetVersion.Status
    used = {run.dataset_version_id for run in runs if run.dataset_version_id}
    listed = Q(project=project_id) & ~Q(status__in=(status.DISCARDED, status.FAILED))
    rows = DatasetVersion.objects.filter(listed | Q(pk__in=used)).select_related("dataset")
    newest = rows.defer("report").order_by("-created_at", "pk")[:MOST_ROWS]
    return sorted(newest, key=lambda each: (each.created_at, each.pk), reverse=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What was made of a checkpoint, or of a base model as it is."""

    node: Node
    base_model_id: str  # empty: of a checkpoint


def _read_uses(project_id: str, checkpoint_ids: Sequence[str]) -> Iterator[Use]:
    of_these = Q(checkpoint__in=checkpoint_ids) | Q(checkpoint=None)
    mine = Q(project=project_id) & of_these
    evaluations = Evaluation.objects.filter(mine).select_related("suite").defer("suite__items")
    for evaluation in evaluations.order_by("-created_at", "pk")[:MOST_ROWS]:
        yield _make_use(evaluation_node(evaluation), evaluation)
    for deployment in Deployment.objects.filter(mine).order_by("-created_at", "pk")[:MOST_ROWS]:
        yield _make_use(deployment_node(deployment), deployment)
    named = Alias.objects.filter(project=project_id, checkpoint__in=checkpoint_ids)
    for alias in named.order_by("name")[:MOST_ROWS]:
        yield Use(node=alias_node(alias), base_model_id="")


def _make_use(node: Node, row: Any) -> Use:
    return Use(node=node, base_model_id="" if row.checkpoint_id else row.base_model_id)
