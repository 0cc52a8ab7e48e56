"""The Tinker wire, what there is: base models, runs, checkpoints, sessions."""

from typing import Any

from django.db.models import QuerySet
from django.http import HttpResponse, JsonResponse

from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint, CheckpointQuerySet
from webapp.checkpoints.services import (
    PATH_KINDS,
    delete_checkpoint,
    find_by_tinker_path,
    set_lifetime,
    set_public,
)
from webapp.core.counts import read_count
from webapp.core.errors import NotFound
from webapp.fleet.models import BaseModelName
from webapp.runs.models import Run, Session
from webapp.tinker.endpoints import TinkerRequest, endpoint
from webapp.tinker.fields import read_fields
from webapp.tinker.services import find_run, find_session, read_ttl

MOST_ROWS = 1000  # in one page


@endpoint("GET")
def capabilities(_request: TinkerRequest) -> JsonResponse:
    models = [
        {
            "model_name": row.name,
            "max_context_length": row.base_model.context_tokens,
            "trainable": True,
            "sampleable": True,
        }
        for row in BaseModelName.objects.select_related("base_model")
    ]
    return JsonResponse({"supported_models": models})


@endpoint("GET")
def training_runs(request: TinkerRequest) -> JsonResponse:
    runs = Run.objects.in_project(request.actor).select_related("base_model", "created_by")
    page, cursor = cut_page(request, runs)
    return JsonResponse({"training_runs": [describe_run(run) for run in page], "cursor": cursor})


@endpoint("GET")
def training_run(request: TinkerRequest, run_id: str) -> JsonResponse:
    return JsonResponse(describe_run(find_run(request.actor, run_id)))


def cut_page(request: TinkerRequest, rows: QuerySet[Any]) -> tuple[list[Any], dict[str, int]]:
    offset = read_count(request.GET.get("offset", "0"), "offset")
    limit = min(read_count(request.GET.get("limit", "100"), "limit"), MOST_ROWS)
    cursor = {"offset": offset, "limit": limit, "total_count": rows.count()}
    return list(rows[offset : offset + limit]), cursor


def describe_run(run: Run) -> dict[str, Any]:
    saved = run.checkpoints.filter(deleted_at=None, is_ephemeral=False)
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
        # The SDK reads a map of strings.
        "user_metadata": {key: str(value) for key, value in run.config.items()},
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
        "user_metadata": checkpoint.user_metadata,
        "expires_at": expires_at.isoformat() if expires_at else None,
    }


def list_checkpoints(actor: Actor) -> CheckpointQuerySet:
    saved = Checkpoint.objects.in_project(actor).alive().filter(is_ephemeral=False)
    return saved.select_related("run")


@endpoint("GET")
def checkpoints(request: TinkerRequest) -> JsonResponse:
    page, cursor = cut_page(request, list_checkpoints(request.actor))
    described = [describe_checkpoint(checkpoint) for checkpoint in page]
    return JsonResponse({"checkpoints": described, "cursor": cursor})


@endpoint("GET")
def run_checkpoints(request: TinkerRequest, run_id: str) -> JsonResponse:
    run = find_run(request.actor, run_id)
    page, cursor = cut_page(request, list_checkpoints(request.actor).filter(run=run))
    described = [describe_checkpoint(checkpoint) for checkpoint in page]
    return JsonResponse({"checkpoints": described, "cursor": cursor})


def find_checkpoint(actor: Actor, run_id: str, kind: str, name: str) -> Checkpoint:
    """One that the actor owns: public ones of others are read, not changed."""
    if kind not in PATH_KINDS:
        raise NotFound(f"There is no checkpoint {kind}/{name}: expected weights/<name>.")
    checkpoint = find_by_tinker_path(actor, f"tinker://{run_id}/{kind}/{name}")
    if not Checkpoint.objects.visible_to(actor).filter(pk=checkpoint.pk).exists():
        raise NotFound(f"There is no checkpoint {kind}/{name} of {run_id}.")
    return checkpoint


@endpoint("DELETE")
def checkpoint(request: TinkerRequest, run_id: str, kind: str, name: str) -> HttpResponse:
    found = find_checkpoint(request.actor, run_id, kind, name)
    delete_checkpoint(actor=request.actor, checkpoint=found)
    return HttpResponse(status=204)


@endpoint("POST", "DELETE")
def publish(request: TinkerRequest, run_id: str, kind: str, name: str) -> HttpResponse:
    found = find_checkpoint(request.actor, run_id, kind, name)
    set_public(actor=request.actor, checkpoint=found, is_public=request.method == "POST")
    return HttpResponse(status=204)


@endpoint("PUT")
def ttl(request: TinkerRequest, run_id: str, kind: str, name: str) -> HttpResponse:
    fields = read_fields(request.body)
    seconds = read_ttl(fields) if fields.has("ttl_seconds") else None
    found = find_checkpoint(request.actor, run_id, kind, name)
    set_lifetime(actor=request.actor, checkpoint=found, ttl_seconds=seconds)
    return HttpResponse(status=204)


@endpoint("POST")
def weights_info(request: TinkerRequest) -> JsonResponse:
    path = read_fields(request.body).text("tinker_path")
    found = find_by_tinker_path(request.actor, path)
    flags = ("train_unembed", "train_mlp", "train_attn")
    return JsonResponse(
        {
            "base_model": found.run.model_name,
            "is_lora": True,
            "lora_rank": found.rank,
            "optimizer_config": {"type": "adamw"},
            **{flag: found.run.lora.get(flag, True) for flag in flags},
        }
    )


@endpoint("GET")
def sessions(request: TinkerRequest) -> JsonResponse:
    rows = Session.objects.in_project(request.actor).only("pk")
    page, _ = cut_page(request, rows)
    return JsonResponse({"sessions": [session.pk for session in page]})


@endpoint("GET")
def session(request: TinkerRequest, session_id: str) -> JsonResponse:
    found = find_session(request.actor, session_id)
    return JsonResponse(
        {
            "training_run_ids": [run.model_id for run in found.runs.all()],
            "sampler_ids": list(found.sampling_sessions.values_list("pk", flat=True)),
            "user_metadata": found.user_metadata,
            "display_name": found.display_name or None,
        }
    )
