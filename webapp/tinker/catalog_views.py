"""The Tinker wire, what there is: base models, runs, sessions."""

from typing import Any

from django.db.models import Q, QuerySet
from django.http import JsonResponse

from training.requests import LOSS_INPUTS, OWN_READINGS
from training.types import OPTIMIZERS
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.core.counts import read_count
from webapp.core.errors import NotFound, UserError
from webapp.fleet.models import BaseModelName
from webapp.runs.clients import find_run_among
from webapp.runs.models import Run, RunQuerySet
from webapp.tinker.describing import describe_runs
from webapp.tinker.endpoints import TinkerRequest, endpoint

SCOPES = ("owned", "accessible")
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
    # The SDK reads the models; the rest is for people: what there is, and what of it is our own.
    return JsonResponse(
        {
            "supported_models": models,
            "losses": list(LOSS_INPUTS),
            "optimizers": list(OPTIMIZERS),
            "notes": OWN_READINGS,
        }
    )


@endpoint("GET")
def training_runs(request: TinkerRequest) -> JsonResponse:
    check_project(request)
    runs = Run.objects.in_project(request.actor)
    if read_scope(request) == "accessible":
        runs = list_readable(request.actor)
    runs = runs.select_related("base_model", "created_by").prefetch_related("base_model__names")
    page, cursor = cut_page(request, runs)
    described = describe_runs(page, request.actor)
    return JsonResponse({"training_runs": described, "cursor": cursor})


@endpoint("GET")
def training_run(request: TinkerRequest, run_id: str) -> JsonResponse:
    """Whatever the scope: a path of somebody's public checkpoint leads to its run."""
    read_scope(request)
    run = find_run_among(list_readable(request.actor), run_id)
    (described,) = describe_runs([run], request.actor)
    return JsonResponse(described)


def list_readable(actor: Actor) -> RunQuerySet:
    """The runs of the actor's project, and those of others that have published a checkpoint."""
    public = Checkpoint.objects.alive().filter(is_public=True)
    return Run.objects.filter(Q(project=actor.project) | Q(pk__in=public.values("run")))


def read_scope(request: TinkerRequest) -> str:
    scope = request.GET.get("access_scope", "owned")
    if scope not in SCOPES:
        raise UserError(f"access_scope is {scope!r:.60}: say {' or '.join(SCOPES)}.")
    return scope


def check_project(request: TinkerRequest) -> None:
    """A key sees its own project alone."""
    project_id = request.GET.get("project_id")
    if project_id and project_id != request.actor.project.pk:
        raise NotFound(f"There is no project {project_id[:60]} that this key may read.")


def cut_page(request: TinkerRequest, rows: QuerySet[Any]) -> tuple[list[Any], dict[str, int]]:
    offset = read_count(request.GET.get("offset", "0"), "offset")
    limit = min(read_count(request.GET.get("limit", "100"), "limit"), MOST_ROWS)
    cursor = {"offset": offset, "limit": limit, "total_count": rows.count()}
    return list(rows[offset : offset + limit]), cursor
