"""Trainer jobs and their shapes."""

from typing import Any

from django.http import HttpResponse, JsonResponse

from webapp.core.errors import NotFound, UserError
from webapp.core.fields import read_fields
from webapp.firetitan import services
from webapp.firetitan.describing import VERSION, describe_job, describe_shape_version
from webapp.firetitan.endpoints import FiretitanRequest, check_account, endpoint
from webapp.firetitan.job_requests import read_request
from webapp.firetitan.listing import list_page
from webapp.firetitan.models import TrainerJob
from webapp.fleet.models import BaseModel


@endpoint("GET", "POST")
def jobs(request: FiretitanRequest, account: str) -> HttpResponse:
    check_account(request.actor, account)
    return list_jobs(request) if request.method == "GET" else create_job(request)


def list_jobs(request: FiretitanRequest) -> JsonResponse:
    rows = TrainerJob.objects.in_project(request.actor).select_related("base_model")
    return list_page(request, rows, "rlorTrainerJobs", tell_job)


def create_job(request: FiretitanRequest) -> JsonResponse:
    asked = read_request(request.GET, read_fields(request.body))
    return JsonResponse(tell_job(services.create_job(actor=request.actor, request=asked)))


@endpoint("GET", "DELETE")
def job(request: FiretitanRequest, account: str, job_id: str) -> HttpResponse:
    found = services.find_job(request.actor, account, job_id)
    if request.method == "GET":
        return JsonResponse(tell_job(found))
    services.delete_job(actor=request.actor, job=found)
    return JsonResponse({})


@endpoint("POST")
def resume(request: FiretitanRequest, account: str, job_id: str) -> HttpResponse:
    found = services.find_job(request.actor, account, job_id)
    services.resume_job(actor=request.actor, job=found)
    return JsonResponse(tell_job(found))


@endpoint("POST")
def cancel(request: FiretitanRequest, account: str, job_id: str) -> HttpResponse:
    found = services.find_job(request.actor, account, job_id)
    services.cancel_job(actor=request.actor, job=found)
    return JsonResponse({})


@endpoint("POST")
def execute_train_step(request: FiretitanRequest, account: str, job_id: str) -> HttpResponse:
    services.find_job(request.actor, account, job_id)
    raise UserError("This job's program takes its own steps: open a training client on the job.")


def tell_job(found: TrainerJob) -> dict[str, Any]:
    return describe_job(found, services.refresh_state(found))


@endpoint("GET")
def shape_versions(_request: FiretitanRequest, account: str, shape: str) -> HttpResponse:
    """Of any account: shapes are named after their publisher."""
    found = [tell_shape(account, shape)]
    return JsonResponse({"trainingShapeVersions": found, "nextPageToken": ""})


@endpoint("GET")
def shape_version(
    _request: FiretitanRequest, account: str, shape: str, version: str
) -> HttpResponse:
    if version != VERSION:
        raise NotFound(f"The shape {shape[:60]} has one version here: {VERSION}.")
    return JsonResponse(tell_shape(account, shape))


def tell_shape(account: str, shape: str) -> dict[str, Any]:
    base_models = list(BaseModel.objects.prefetch_related("names"))
    return describe_shape_version(account, shape, base_models)
