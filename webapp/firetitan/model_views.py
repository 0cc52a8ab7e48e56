"""Checkpoints of jobs, their promotion, and models."""

from functools import partial

from django.http import HttpResponse, JsonResponse

from webapp.core.fields import read_fields
from webapp.firetitan.describing import describe_base_model
from webapp.firetitan.endpoints import FiretitanRequest, check_account, endpoint
from webapp.firetitan.listing import list_page
from webapp.firetitan.names import find_base_model, read_last
from webapp.firetitan.promotion import (
    describe_checkpoint,
    describe_promoted,
    find_promoted,
    list_job_checkpoints,
    promote_checkpoint,
)
from webapp.firetitan.services import find_job


@endpoint("GET")
def checkpoints(request: FiretitanRequest, account: str, job_id: str) -> HttpResponse:
    job = find_job(request.actor, account, job_id)
    tell = partial(describe_checkpoint, job)
    return list_page(request, list_job_checkpoints(job), "checkpoints", tell)


@endpoint("POST")
def promote(request: FiretitanRequest, account: str, name: str) -> HttpResponse:
    check_account(request.actor, account)
    fields = read_fields(request.body)
    job = find_job(request.actor, account, read_last(fields.text("trainer_job_id")))
    promoted = promote_checkpoint(
        actor=request.actor,
        job=job,
        name=name,
        output_model=fields.text("output_model"),
        base_model=fields.text("base_model", ""),
    )
    return JsonResponse({"model": describe_promoted(promoted)})


@endpoint("GET")
def model(request: FiretitanRequest, account: str, model_id: str) -> HttpResponse:
    """Base models are in whichever account a program knows them by."""
    name = f"accounts/{account}/models/{model_id}"
    promoted = find_promoted(request.actor, name)
    if promoted is not None:
        return JsonResponse(describe_promoted(promoted))
    found = find_base_model(name)
    return JsonResponse(describe_base_model(account, model_id, found))
