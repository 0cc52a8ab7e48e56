"""Snapshots that a program saved, loaded into a deployment by the name it gave them.

A deployment goes on serving what it serves until the new weights are proven; a load that fails
leaves it as it was. The names that are told are exactly those that were posted.
"""

from collections.abc import Iterator
from typing import Any

from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.core.errors import NotFound
from webapp.deployments import services
from webapp.deployments.models import Deployment, DeploymentChange
from webapp.firetitan.deployment_services import find_job_by_name, read_terms
from webapp.firetitan.models import TrainerJob, TrainerJobQuerySet
from webapp.firetitan.names import read_last
from webapp.firetitan.promotion import list_runs

Status = DeploymentChange.Status

STAGES = {Status.LOADING: "loading", Status.SERVED: "done", Status.FAILED: "error"}


def request_load(*, actor: Actor, deployment: Deployment, identity: str) -> None:
    """The same snapshot again, while it is served or being loaded, changes nothing."""
    snapshot = find_snapshot(actor, deployment, identity)
    if is_wanted_already(deployment, snapshot, identity):
        return
    transition = read_terms(deployment).hot_load_transition_type.lower()
    services.change_checkpoint(
        actor=actor,
        deployment=deployment,
        checkpoint=snapshot,
        transition=transition,
        identity=identity,
    )


def is_wanted_already(deployment: Deployment, snapshot: Checkpoint, identity: str) -> bool:
    newest = find_newest(deployment, *STAGES)
    is_live = deployment.status in (Deployment.Status.LOADING, Deployment.Status.READY)
    if newest is None or newest.status == Status.FAILED or not is_live:
        return False
    return (newest.identity, newest.checkpoint_id) == (identity, snapshot.pk)


def find_snapshot(actor: Actor, deployment: Deployment, identity: str) -> Checkpoint:
    """`step-1-3296a737`, or `<account>/<run>/step-1-3296a737`: of the deployment's own trainer, of
    one that was made for the deployment, or else of any of the account.
    """
    named = (
        Checkpoint.objects.in_project(actor)
        .alive()
        .filter(
            kind=Checkpoint.Kind.SAMPLER,
            name=read_last(identity),
            base_model=deployment.base_model_id,
        )
    )
    for jobs in list_trainers(actor, deployment):
        found = named.filter(run__in=list_runs(jobs)).order_by("-created_at").first()
        if found is not None:
            return found
    raise NotFound(
        f"There is no snapshot {identity[:200]!r} of {deployment.base_model} in this account: save"
        " one with save_weights_for_sampler first."
    )


def list_trainers(actor: Actor, deployment: Deployment) -> Iterator[TrainerJobQuerySet]:
    mine = TrainerJob.objects.in_project(actor)
    linked = find_job_by_name(actor, read_terms(deployment).hot_load_trainer_job)
    yield mine.filter(pk=linked.pk) if linked else mine.none()
    yield mine.filter(hot_load_deployment=deployment.name)
    yield mine


def describe_loading(deployment: Deployment) -> dict[str, Any]:
    """One replica stands for all: a snapshot is served by every one of them or by none."""
    newest = find_newest(deployment, *STAGES)
    served = find_newest(deployment, Status.SERVED)
    is_loading = newest is not None and newest.status == Status.LOADING
    is_ready = deployment.status == Deployment.Status.READY and not is_loading
    state: dict[str, Any] = {"stage": "pending", "target_snapshot_identity": None}
    if newest is not None:
        state["stage"] = STAGES[Status(newest.status)]
        state["target_snapshot_identity"] = name_snapshot(newest)
        state["error"] = newest.error
    replica: dict[str, Any] = {
        "readiness": is_ready,
        "current_snapshot_identity": name_snapshot(served) if served else None,
        "loading_state": state,
        "loaded_adapters": [],
    }
    return {"replicas": [replica]}


def find_newest(deployment: Deployment, *statuses: Status) -> DeploymentChange | None:
    changes = deployment.changes.filter(status__in=statuses).select_related("checkpoint")
    return changes.first()


def name_snapshot(change: DeploymentChange) -> str | None:
    """As it was posted; None: the base model. What a person chose on a page goes by its name."""
    if change.checkpoint is None:
        return None
    return change.identity or change.checkpoint.name
