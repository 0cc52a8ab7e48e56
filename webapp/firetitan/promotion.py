"""Checkpoints of a job, and the names of models that some of them were given.

A promotion keeps the checkpoint: it does not expire any more, and the account's model of the given
name is that checkpoint. Nothing is copied or merged; an adapter stays an adapter of its base model.
"""

import json
from typing import Any

from django.db import IntegrityError, transaction

from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint, CheckpointQuerySet
from webapp.checkpoints.services import find_folder, keep_checkpoint
from webapp.core.errors import NotFound, UserError
from webapp.firetitan.describing import name_job
from webapp.firetitan.errors import AlreadyExists
from webapp.firetitan.models import PromotedModel, TrainerJob, TrainerJobQuerySet
from webapp.firetitan.names import check_id, find_base_model, read_last
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run, RunQuerySet

Kind = Checkpoint.Kind
LOADABLE = (Kind.TRAINING, Kind.SAMPLER)


def list_runs(jobs: TrainerJobQuerySet) -> RunQuerySet:
    """The models that programs opened on these jobs."""
    return Run.objects.filter(session__trainer_jobs__in=jobs)


def list_job_checkpoints(job: TrainerJob) -> CheckpointQuerySet:
    """Of a deleted job too. What was saved for a moment only has no name to ask for."""
    runs = list_runs(TrainerJob.objects.filter(pk=job.pk))
    saved = Checkpoint.objects.alive().filter(run__in=runs, kind__in=LOADABLE, is_ephemeral=False)
    return saved.select_related("run")


def find_job_checkpoint(job: TrainerJob, name: str) -> Checkpoint:
    """The newest of the name: what its program resumed may have saved it again."""
    saved = list_job_checkpoints(job).filter(name=name)
    # A sampler's weights before the same name's training state: only those can be served.
    found = saved.order_by("kind", "-created_at").first()
    if found is None:
        raise NotFound(f"The job {job.job_id} has no checkpoint {name[:200]}.")
    return found


def describe_checkpoint(job: TrainerJob, checkpoint: Checkpoint) -> dict[str, Any]:
    saved_at = checkpoint.created_at.isoformat()
    return {
        "name": f"{name_job(job)}/checkpoints/{checkpoint.name}",
        "createTime": saved_at,
        "updateTime": saved_at,
        "checkpointType": f"CHECKPOINT_TYPE_{choose_type(checkpoint)}",
        "promotable": is_promotable(checkpoint),
        "sizeBytes": str(checkpoint.size_bytes),
    }


def choose_type(checkpoint: Checkpoint) -> str:
    """As its program asked for it: how it lies on the disk is our own affair."""
    if checkpoint.kind == Kind.TRAINING:
        return "TRAINING" if checkpoint.is_full else "TRAINING_LORA"
    asked = checkpoint.user_metadata.get("checkpoint_type")
    if asked == "delta":
        return "INFERENCE_ARC_V2"
    is_whole = checkpoint.is_full or asked == "merged_base"
    return "INFERENCE_BASE" if is_whole else "INFERENCE_LORA"


def is_promotable(checkpoint: Checkpoint) -> bool:
    return choose_type(checkpoint) in ("INFERENCE_BASE", "INFERENCE_LORA")


@transaction.atomic
def promote_checkpoint(
    *, actor: Actor, job: TrainerJob, name: str, output_model: str, base_model: str
) -> PromotedModel:
    """The same again is the same model; another checkpoint needs another name."""
    checkpoint = find_job_checkpoint(job, name)
    check_promotable(checkpoint, base_model)
    model_id = read_model_id(actor, output_model)
    keep_checkpoint(actor=actor, checkpoint=checkpoint)
    same = PromotedModel.objects.filter(project=actor.project, model_id=model_id)
    same.exclude(checkpoint__deleted_at=None).delete()
    try:
        with transaction.atomic():
            promoted, _ = PromotedModel.objects.get_or_create(
                project=actor.project, model_id=model_id, checkpoint=checkpoint
            )
    except IntegrityError:
        raise AlreadyExists(
            f"There is a model {model_id} already, of another checkpoint: choose another name."
        ) from None
    return promoted


def check_promotable(checkpoint: Checkpoint, base_model: str) -> None:
    if not is_promotable(checkpoint):
        raise UserError(
            f"The checkpoint {checkpoint.name} is of the type {choose_type(checkpoint)}: promote"
            " one that the job's list calls promotable."
        )
    if base_model and find_base_model(base_model).pk != checkpoint.base_model_id:
        raise UserError(
            f"The checkpoint {checkpoint.name} belongs to {checkpoint.base_model}, not to"
            f" {base_model[:200]}.",
            field="base_model",
        )


def read_model_id(actor: Actor, output_model: str) -> str:
    account, separator, model_id = output_model.rpartition("/models/")
    if separator and account != f"accounts/{actor.project.pk}":
        raise UserError(
            f"output_model is {output_model[:200]!r}: it lies in accounts/{actor.project.pk}.",
            field="output_model",
        )
    return check_id(model_id, "output_model")


def find_promoted(actor: Actor, name: str) -> PromotedModel | None:
    """By its resource name. None: nothing of the actor's has that name now."""
    if not name.startswith(f"accounts/{actor.project.pk}/models/"):
        return None
    mine = PromotedModel.objects.in_project(actor).filter(checkpoint__deleted_at=None)
    whole = mine.select_related("checkpoint__base_model", "checkpoint__run")
    return whole.filter(model_id=read_last(name)).first()


def find_model(actor: Actor, name: str) -> tuple[BaseModel, Checkpoint | None]:
    """A base model, or a promoted checkpoint with the base model it belongs to."""
    promoted = find_promoted(actor, name)
    if promoted is not None:
        return promoted.checkpoint.base_model, promoted.checkpoint
    return find_base_model(name), None


def describe_promoted(promoted: PromotedModel) -> dict[str, Any]:
    checkpoint = promoted.checkpoint
    described = {
        "name": f"accounts/{promoted.project_id}/models/{promoted.model_id}",
        "displayName": promoted.model_id,
        "state": "READY",
        "status": {"code": "OK", "message": "", "details": []},
        "createTime": promoted.created_at.isoformat(),
        "contextLength": checkpoint.base_model.context_tokens,
    }
    if choose_type(checkpoint) == "INFERENCE_BASE":
        return described | {"kind": "HF_BASE_MODEL"}
    return described | {"kind": "HF_PEFT_ADDON", "peftDetails": describe_adapter(checkpoint)}


def describe_adapter(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "baseModel": checkpoint.run.model_name,
        "r": checkpoint.rank,
        "targetModules": read_targets(checkpoint),
    }


def read_targets(checkpoint: Checkpoint) -> list[str]:
    """As its own files say."""
    try:
        config = json.loads((find_folder(checkpoint) / "adapter_config.json").read_text())
    except (OSError, ValueError):
        return []
    targets = config.get("target_modules") or []
    return sorted(targets) if isinstance(targets, list) else [str(targets)]
