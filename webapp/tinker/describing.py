"""What runs and checkpoints look like on the Tinker wire."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.db.models import Q, Window
from django.db.models.functions import RowNumber

from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.runs.models import Run

Last = Mapping[tuple[str, str], Checkpoint]  # by run and kind


def describe_runs(runs: Sequence[Run], actor: Actor) -> list[dict[str, Any]]:
    last = find_last(runs, actor)
    return [describe_run(run, last) for run in runs]


def find_last(runs: Sequence[Run], actor: Actor) -> Last:
    """Of each run and kind, as far as the actor may see them, in one query for all runs."""
    readable = Q(project=actor.project) | Q(is_public=True)
    saved = Checkpoint.objects.alive().filter(readable, run__in=runs, is_ephemeral=False)
    place = Window(RowNumber(), partition_by=["run", "kind"], order_by=["-created_at", "-pk"])
    newest = saved.annotate(place=place).filter(place=1).order_by()
    by_id = {run.pk: run for run in runs}
    last = {}
    for row in newest.defer("probe"):
        row.run = by_id[row.run_id]  # whose names are there already
        last[row.run_id, row.kind] = row
    return last


def describe_run(run: Run, last: Last) -> dict[str, Any]:
    state = last.get((run.pk, Checkpoint.Kind.TRAINING))
    sampler = last.get((run.pk, Checkpoint.Kind.SAMPLER))
    return {
        "training_run_id": run.model_id,
        "base_model": run.model_name,
        "model_owner": str(run.created_by or ""),
        "is_lora": not run.is_full,
        "corrupted": False,
        "lora_rank": run.rank or None,
        "last_request_time": run.last_request_at.isoformat(),
        "last_checkpoint": describe_checkpoint(state) if state else None,
        "last_sampler_checkpoint": describe_checkpoint(sampler) if sampler else None,
        "user_metadata": write_texts(run.config),
    }


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
