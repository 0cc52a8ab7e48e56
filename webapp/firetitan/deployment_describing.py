"""Our deployments in the words of the Fireworks dialect."""

from typing import Any

from webapp.deployments.models import Deployment
from webapp.firetitan.deployment_services import read_terms
from webapp.firetitan.models import DeploymentTerms

Status = Deployment.Status

SLEEPS = "It sleeps: the next request for it wakes it."
STOPPED = "A person stopped it: the next hot load starts it again."


def describe_deployment(deployment: Deployment) -> dict[str, Any]:
    terms = read_terms(deployment)
    described = {
        "name": name_deployment(deployment),
        "displayName": deployment.name,
        "description": terms.description,
        "baseModel": terms.asked_model,
        "state": choose_state(deployment),
        "status": describe_status(deployment),
        "minReplicaCount": terms.min_replica_count,
        "maxReplicaCount": terms.max_replica_count,
        "desiredReplicaCount": deployment.num_replicas,
        "enableHotLoad": terms.enable_hot_load,
        "forTraining": terms.for_training,
        "annotations": terms.annotations,
        "hotLoadBucketUrl": None,  # snapshots are on this installation's own disk
        "createTime": deployment.created_at.isoformat(),
        "updateTime": deployment.changed_at.isoformat(),
    }
    return described | describe_told(terms)


def name_deployment(deployment: Deployment) -> str:
    return f"accounts/{deployment.project_id}/deployments/{deployment.name}"


def describe_told(terms: DeploymentTerms) -> dict[str, str]:
    """What is absent where it was never said: the SDK compares it with what it would say."""
    told = {
        "deploymentShape": terms.deployment_shape,
        "hotLoadTrainerJob": terms.hot_load_trainer_job,
        "hotLoadTransitionType": terms.hot_load_transition_type,
    }
    return {key: value for key, value in told.items() if value}


def choose_state(deployment: Deployment) -> str:
    """One that sleeps or was stopped is there to be used, as a hosted one of no replicas is."""
    if deployment.status == Status.FAILED:
        return "FAILED"
    if deployment.status != Status.LOADING or deployment.num_replicas == 0:
        return "READY"
    return "UPDATING" if has_served(deployment) else "CREATING"


def has_served(deployment: Deployment) -> bool:
    return deployment.changes.filter(status="served").exists()


def describe_status(deployment: Deployment) -> dict[str, Any]:
    if deployment.status == Status.FAILED:
        return {"code": "FAILED_PRECONDITION", "message": deployment.error, "details": []}
    told = STOPPED if deployment.status == Status.STOPPED else ""
    if not told and deployment.num_replicas == 0:
        told = SLEEPS
    return {"code": "OK", "message": told, "details": []}
