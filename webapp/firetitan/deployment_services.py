"""Writes of the Fireworks dialect: deployments, each with the terms that its program gave it."""

from collections.abc import Mapping
from typing import Any

from django.db import transaction

from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.core.errors import NotFound, UserError
from webapp.deployments import replicas, services
from webapp.deployments.models import Deployment
from webapp.firetitan.deployment_requests import DeploymentRequest, check_counts, count_replicas
from webapp.firetitan.describing import name_job
from webapp.firetitan.endpoints import check_account
from webapp.firetitan.errors import AlreadyExists
from webapp.firetitan.models import DeploymentTerms, TrainerJob
from webapp.firetitan.names import check_id, make_slug
from webapp.firetitan.promotion import find_model
from webapp.fleet.models import BaseModel

WHOLE = ("base_model", "checkpoint", "fireworks_terms")


def find_deployment(actor: Actor, account: str, deployment_id: str) -> Deployment:
    """Those that people made on its page too: a deployment's id is its name."""
    check_account(actor, account)
    mine = Deployment.objects.in_project(actor).select_related(*WHOLE)
    found = mine.filter(name=deployment_id).first()
    if found is None:
        raise NotFound(f"There is no deployment {deployment_id[:100]}.")
    return found


def find_by_name(actor: Actor, name: str) -> Deployment:
    """`accounts/<account>/deployments/<id>`."""
    parts = name.strip("/").split("/")
    if len(parts) != 4 or (parts[0], parts[2]) != ("accounts", "deployments"):
        raise UserError(
            f"{name[:200]!r} is no deployment's name: it reads accounts/<account>/deployments/<id>."
        )
    return find_deployment(actor, parts[1], parts[3])


def read_terms(deployment: Deployment) -> DeploymentTerms:
    """Of one that a person made, what they come to."""
    if hasattr(deployment, "fireworks_terms"):
        return deployment.fireworks_terms
    model = make_slug(deployment.base_model.name)
    return DeploymentTerms(
        deployment=deployment,
        asked_model=f"accounts/{deployment.project_id}/models/{model}",
        enable_hot_load=True,
        min_replica_count=deployment.num_replicas,
        max_replica_count=deployment.num_replicas,
    )


def create_deployment(
    *, actor: Actor, deployment_id: str, request: DeploymentRequest
) -> Deployment:
    """It serves the base model, or the promoted one, until a snapshot is loaded."""
    check_id(deployment_id, "deploymentId")
    check_is_free(actor, deployment_id)
    base_model, checkpoint = find_model(actor, request.base_model)
    check_job(actor, request.terms["hot_load_trainer_job"], base_model.pk)
    try:
        return _create(actor, deployment_id, request, base_model, checkpoint)
    except UserError:
        check_is_free(actor, deployment_id)  # another request may have been faster
        raise


def check_is_free(actor: Actor, deployment_id: str) -> None:
    if Deployment.objects.filter(project=actor.project, name=deployment_id).exists():
        raise AlreadyExists(f"There is a deployment {deployment_id} already.")


@transaction.atomic
def _create(
    actor: Actor,
    deployment_id: str,
    request: DeploymentRequest,
    base_model: BaseModel,
    checkpoint: Checkpoint | None,
) -> Deployment:
    deployment = services.create_deployment(
        actor=actor, name=deployment_id, base_model=base_model, checkpoint=checkpoint
    )
    terms = DeploymentTerms.objects.create(
        deployment=deployment, asked_model=request.base_model, **request.terms
    )
    scale_as_told(actor, deployment, terms)
    return deployment


@transaction.atomic
def update_deployment(
    *, actor: Actor, deployment: Deployment, changes: Mapping[str, Any]
) -> Deployment:
    check_job(actor, changes.get("hot_load_trainer_job", ""), deployment.base_model_id)
    lock(deployment)
    terms = read_terms(deployment)
    for name, value in changes.items():
        setattr(terms, name, value)
    check_counts(terms.min_replica_count, terms.max_replica_count)
    terms.save()
    if any(name.endswith("_count") for name in changes):  # else a person's word stands
        scale_as_told(actor, deployment, terms)
    return deployment


def lock(deployment: Deployment) -> None:
    """With its newest terms: two changes at once both stand, and both may be the first."""
    if Deployment.objects.select_for_update().filter(pk=deployment.pk).first() is None:
        raise NotFound(f"There is no deployment {deployment.name[:100]}.")
    deployment.refresh_from_db()


def scale_deployment(*, actor: Actor, deployment: Deployment, num_replicas: int) -> Deployment:
    counts = {"min_replica_count": num_replicas, "max_replica_count": num_replicas}
    return update_deployment(actor=actor, deployment=deployment, changes=counts)


def scale_as_told(actor: Actor, deployment: Deployment, terms: DeploymentTerms) -> None:
    wanted = count_replicas(terms.min_replica_count, terms.max_replica_count)
    if wanted != deployment.num_replicas:
        replicas.scale_deployment(actor=actor, deployment=deployment, num_replicas=wanted)


def check_job(actor: Actor, name: str, base_model_id: str) -> None:
    """The trainer whose snapshots are to be loaded is one of the account's, on the same model."""
    if not name:
        return
    job = find_job_by_name(actor, name)
    if job is None:
        raise UserError(
            f"hotLoadTrainerJob is {name[:200]!r}: this account has no such trainer job.",
            field="hotLoadTrainerJob",
        )
    if job.base_model_id != base_model_id:
        raise UserError(
            f"The trainer job {job.job_id} trains {job.asked_model}, and this deployment serves"
            " another model.",
            field="hotLoadTrainerJob",
        )


def find_job_by_name(actor: Actor, name: str) -> TrainerJob | None:
    jobs = TrainerJob.objects.in_project(actor)
    job = jobs.filter(job_id=name.rpartition("/")[2]).first()
    return job if job is not None and name in (job.job_id, name_job(job)) else None
