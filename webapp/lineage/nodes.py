"""One row of each kind as a node: its name, its key facts, and what it came of."""

from collections.abc import Sequence

from django.urls import reverse

from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.scores import describe_score, find_score
from webapp.core.templatetags.hone import count, loss, size
from webapp.datasets.models import DatasetVersion
from webapp.deployments.models import Deployment
from webapp.evals.models import Alias, Evaluation
from webapp.fleet.models import BaseModel
from webapp.lineage.graph import Node
from webapp.runs.models import Run

Facts = list[tuple[str, str]]
DIGEST_LENGTH = 12
NOTHING_OF_OURS = "another project's"


def base_node(model: BaseModel) -> Node:
    return Node(
        id=model.pk,
        kind="base",
        label=model.name,
        detail="as it is, or on a client's own data",
        facts=_list_facts(digest=model.digest[:DIGEST_LENGTH]),
    )


def dataset_node(version: DatasetVersion, project_id: str) -> Node:
    is_ours = version.project_id == project_id
    rows = f"{count(version.num_rows)} rows"
    split = f", {version.split.replace('_', ' ')}" if version.split else ""
    derived = ", derived" if version.derived_from_id else ""
    return Node(
        id=version.pk,
        kind="dataset",
        label=str(version),
        detail=rows + split + derived if is_ours else NOTHING_OF_OURS,
        url=reverse("version", args=[version.pk]) if is_ours else "",
        facts=_list_facts(
            kind=version.kind.replace("_", " "),
            status="" if version.status == "ready" else version.status.replace("_", " "),
            digest=version.digest[:DIGEST_LENGTH],
        ),
        main=version.derived_from_id or "",
        created_at=version.created_at,
    )


def run_node(run: Run, *, inherits: bool = False, taught_by: Sequence[str] = ()) -> Node:
    """Of a branch its checkpoint comes first, and the data that it learned from beside it; then the
    teachers and judges that its settings name."""
    data = "" if inherits else run.dataset_version_id or ""
    brought = f" on {run.dataset_version}" if run.parent_id and data else ""
    named = dict.fromkeys((run.parent_id, data, run.after_id, *taught_by))
    parents = [each for each in named if each]
    return Node(
        id=run.pk,
        kind="run",
        label=run.name,
        detail=f"{run.status}, {count(run.step)} steps{brought}",
        url=reverse("run", args=[run.pk]),
        facts=_list_facts(
            method=run.recipe.replace("_", " ") or "a program's own loop",
            rank=str(run.rank or "all weights"),
            data=str(run.dataset_version) if run.dataset_version else "a client's own",
            begins=f"with {run.parent.name}, step {run.parent.step}" if run.parent else "",
            after=run.after.name if run.after else "",
            group=run.group.name if run.group else "",
            loss=loss(run.last_loss) if run.last_loss is not None else "",
        ),
        main=parents[0] if parents else run.base_model_id,
        others=parents[1:],
        created_at=run.created_at,
        step=run.step,
        group=run.group_id or "",
        group_name=run.group.name if run.group else "",
        status=run.status,
    )


def checkpoint_node(checkpoint: Checkpoint, project_id: str) -> Node:
    is_ours = checkpoint.project_id == project_id
    form = f" {checkpoint.type}" if checkpoint.is_full else ""
    word = "deleted" if checkpoint.deleted_at else f"{checkpoint.kind}{form}"
    detail = f"step {count(checkpoint.step)}, {word}{' (age)' if checkpoint.is_encrypted else ''}"
    return Node(
        id=checkpoint.pk,
        kind="checkpoint",
        label=checkpoint.name,
        detail=detail if is_ours else NOTHING_OF_OURS,
        url=reverse("checkpoint", args=[checkpoint.pk]) if is_ours else "",
        facts=_list_facts(
            size=size(checkpoint.size_bytes),
            digest=checkpoint.digest[:DIGEST_LENGTH],
            pinned="yes" if checkpoint.is_pinned else "",
            optimizer="included" if checkpoint.has_optimizer else "",
        ),
        main=checkpoint.run_id if is_ours else "",
        created_at=checkpoint.created_at,
        size_bytes=0 if checkpoint.deleted_at else checkpoint.size_bytes,
        is_gone=checkpoint.deleted_at is not None,
        step=checkpoint.step,
    )


def evaluation_node(evaluation: Evaluation) -> Node:
    return Node(
        id=evaluation.pk,
        kind="evaluation",
        label=evaluation.suite.name,
        detail=describe_score(evaluation),
        url=reverse("evaluation", args=[evaluation.pk]),
        facts=_list_facts(
            status=evaluation.status,
            prompts=count(evaluation.suite.num_items),
            suite_digest=evaluation.suite.digest[:DIGEST_LENGTH],
        ),
        main=evaluation.checkpoint_id or evaluation.base_model_id,
        created_at=evaluation.created_at,
        suite=evaluation.suite_id,
        score=find_score(evaluation),
    )


def deployment_node(deployment: Deployment) -> Node:
    return Node(
        id=deployment.pk,
        kind="deployment",
        label=deployment.name,
        detail=deployment.status,
        url=reverse("deployment", args=[deployment.pk]),
        facts=_list_facts(replicas=str(deployment.num_replicas)),
        main=deployment.checkpoint_id or deployment.base_model_id,
        created_at=deployment.created_at,
    )


def alias_node(alias: Alias) -> Node:
    return Node(
        id=alias.pk,
        kind="alias",
        label=alias.name,
        detail="names this checkpoint",
        url=reverse("alias", args=[alias.pk]),
        facts=_list_facts(moves="when its test passes" if alias.suite_id else "freely"),
        main=alias.checkpoint_id or "",
        created_at=alias.created_at,
    )


def _list_facts(**facts: str) -> Facts:
    return [(name.replace("_", " "), value) for name, value in facts.items() if value]
