"""Our rows in the words of the Fireworks dialect: jobs, shapes and models."""

from pathlib import Path
from typing import Any

from training.errors import InvalidInput
from training.shapes import ModelShape
from webapp.firetitan.models import TrainerJob
from webapp.firetitan.names import list_slugs
from webapp.firetitan.standing import Standing
from webapp.fleet.models import BaseModel

VERSION = "local"  # of a shape: there is one of each, and it is this installation


def describe_job(job: TrainerJob, standing: Standing) -> dict[str, Any]:
    training: dict[str, Any] = {
        "baseModel": job.asked_model,
        "loraRank": job.lora_rank,
        "learningRate": job.learning_rate,
    }
    if job.max_context_length:
        training["maxContextLength"] = job.max_context_length
    described = {
        "name": name_job(job),
        "displayName": job.display_name,
        "state": f"JOB_STATE_{standing.state.upper()}",
        "status": describe_status(job, standing),
        "trainingConfig": training,
        "serviceMode": True,
        "forwardOnly": job.forward_only,
        "inactivityTimeout": f"{job.inactivity_seconds}s",
        "createTime": job.created_at.isoformat(),
    }
    if job.ended_at:
        described["completedTime"] = job.ended_at.isoformat()
    if job.hot_load_deployment:
        deployment = f"accounts/{job.project_id}/deployments/{job.hot_load_deployment}"
        described["hotLoadDeploymentId"] = deployment
    if job.training_shape:
        described["trainingShape"] = job.training_shape
    return described


def name_job(job: TrainerJob) -> str:
    return f"accounts/{job.project_id}/rlorTrainerJobs/{job.job_id}"


def describe_status(job: TrainerJob, standing: Standing) -> dict[str, Any]:
    """The SDK logs what begins with `Warning:`, and shows the rest to whoever waits."""
    if standing.state == TrainerJob.State.FAILED:
        return {"code": "FAILED_PRECONDITION", "message": standing.reason, "details": []}
    told = " ".join(part for part in (job.warning, standing.reason) if part)
    return {"code": "OK", "message": told, "details": []}


def describe_shape_version(
    account: str, shape: str, base_models: list[BaseModel]
) -> dict[str, Any]:
    """Shapes are hardware somewhere else: here each means the gpu workers that there are."""
    return {
        "name": f"accounts/{account}/trainingShapes/{shape}/versions/{VERSION}",
        "latestValidated": True,
        "validated": True,
        "public": True,
        "snapshot": {
            "trainerImageTag": VERSION,
            "maxSupportedContextLength": find_context(shape, base_models),
            "nodeCount": 1,
            "deploymentShapeVersion": (
                f"accounts/{account}/deploymentShapes/{shape}/versions/{VERSION}"
            ),
            "deploymentImageTag": VERSION,
            "acceleratorType": "ACCELERATOR_TYPE_UNSPECIFIED",
            "acceleratorCount": 1,
            "baseModelWeightPrecision": "PRECISION_UNSPECIFIED",
            "trainerShardingScheme": {"pipelineParallelism": 1},
            "trainerMode": "LORA_TRAINER",  # what the SDK takes for a policy and a reference alike
        },
    }


def find_context(shape: str, base_models: list[BaseModel]) -> int:
    """Of the model that the shape is named after, else the longest that a model here reads: the
    job itself tells its own model's.
    """
    named = [each.context_tokens for each in base_models if is_named_after(shape, each)]
    return max(named or [each.context_tokens for each in base_models], default=0)


def is_named_after(shape: str, base_model: BaseModel) -> bool:
    """Such as `qwen3-8b-128k-h200`, or `ts-qwen3-8b-policy`."""
    slugs = (slug for row in base_model.names.all() for slug in list_slugs(row.name))
    return any(slug in shape for slug in slugs)


def describe_base_model(account: str, model_id: str, base_model: BaseModel) -> dict[str, Any]:
    return {
        "name": f"accounts/{account}/models/{model_id}",
        "displayName": base_model.name,
        "kind": "HF_BASE_MODEL",
        "state": "READY",
        "baseModelDetails": {
            "moe": has_experts(base_model),
            "parameterCount": str(base_model.num_parameters),
            "modelType": base_model.architecture,
            "tunable": True,
        },
        "contextLength": base_model.context_tokens,
        "supportsLora": True,
        "tunable": True,
        "createTime": base_model.added_at.isoformat(),
    }


def has_experts(base_model: BaseModel) -> bool:
    """As its config.json says. A folder that has gone serves nobody, of either kind."""
    try:
        return ModelShape.read(Path(base_model.path)).num_experts > 1
    except InvalidInput:
        return False
