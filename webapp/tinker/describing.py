"""What runs and checkpoints look like on the Tinker wire."""

from typing import Any

from django.db.models import QuerySet

from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.runs.models import Run


def describe_run(run: Run, actor: Actor) -> dict[str, Any]:
    saved = run.checkpoints.filter(deleted_at=None, is_ephemeral=False)
    if run.project_id != actor.project.pk:
        saved = saved.filter(is_public=True)
    return {
        "training_run_id": run.model_id,
        "base_model": run.model_name,
        "model_owner": str(run.created_by or ""),
        "is_lora": True,
        "corrupted": False,
        "lora_rank": run.rank,
        "last_request_time": run.last_request_at.isoformat(),
        "last_checkpoint": describe_last(run, saved, Checkpoint.Kind.TRAINING),
        "last_sampler_checkpoint": describe_last(run, saved, Checkpoint.Kind.SAMPLER),
        "user_metadata": write_texts(run.config),
    }


def describe_last(run: Run, saved: QuerySet[Checkpoint], kind: str) -> dict[str, Any] | None:
    last = saved.filter(kind=kind).first()
    if last is None:
        return None
    last.run = run
    return describe_checkpoint(last)


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    path = checkpoint.tinker_path
    expires_at = checkpoint.expires_at
    return {
        "checkpoint_id": "/".join(path.split("/")[-2:]),
        "checkpoint_type": checkpoint.kind,
        "time": checkpoint.created_at.isoformat(),
        "tinker_path": path,
        "size_bytes": checkpoint.size_bytes,
        "public": checkpoint.is_public,
        "user_metadata": write_texts(checkpoint.user_metadata),
        "expires_at": expires_at.isoformat() if expires_at else None,
    }


def write_texts(metadata: dict[str, Any]) -> dict[str, str]:
    """The SDK reads a map of strings."""
    return {key: str(value) for key, value in metadata.items()}
