"""Deployments, and the snapshots that are loaded into them."""

from django.http import HttpResponse, JsonResponse

from webapp.core.errors import UserError
from webapp.core.fields import read_fields
from webapp.deployments import services as own_services
from webapp.deployments.models import Deployment
from webapp.firetitan import deployment_services as services
from webapp.firetitan.deployment_describing import describe_deployment
from webapp.firetitan.deployment_requests import MOST_REPLICAS, read_changes, read_creation
from webapp.firetitan.endpoints import FiretitanRequest, check_account, endpoint
from webapp.firetitan.hot_loading import describe_loading, request_load
from webapp.firetitan.listing import list_page

LONGEST_IDENTITY = 200


@endpoint("GET", "POST")
def deployments(request: FiretitanRequest, account: str) -> HttpResponse:
    check_account(request.actor, account)
    return list_deployments(request) if request.method == "GET" else create_deployment(request)


def list_deployments(request: FiretitanRequest) -> JsonResponse:
    mine = Deployment.objects.in_project(request.actor)
    rows = mine.select_related("base_model", "fireworks_terms").prefetch_related(
        "base_model__names"
    )
    return list_page(request, rows, "deployments", describe_deployment)


def create_deployment(request: FiretitanRequest) -> JsonResponse:
    made = services.create_deployment(
        actor=request.actor,
        deployment_id=request.GET.get("deploymentId", ""),
        request=read_creation(read_fields(request.body)),
    )
    return JsonResponse(describe_deployment(made))


@endpoint("GET", "PATCH", "DELETE")
def deployment(request: FiretitanRequest, account: str, deployment_id: str) -> HttpResponse:
    found = services.find_deployment(request.actor, account, deployment_id)
    if request.method == "GET":
        return JsonResponse(describe_deployment(found))
    if request.method == "DELETE":
        own_services.delete_deployment(actor=request.actor, deployment=found)
        return JsonResponse({})
    changes = read_changes(request.GET.get("updateMask", ""), read_fields(request.body))
    changed = services.update_deployment(actor=request.actor, deployment=found, changes=changes)
    return JsonResponse(describe_deployment(changed))


@endpoint("PATCH", "POST")
def scale(request: FiretitanRequest, account: str, deployment_id: str) -> HttpResponse:
    found = services.find_deployment(request.actor, account, deployment_id)
    number = read_fields(request.body).whole("replicaCount", most=MOST_REPLICAS)
    services.scale_deployment(actor=request.actor, deployment=found, num_replicas=number)
    return JsonResponse({})


@endpoint("GET", "POST")
def hot_load(request: FiretitanRequest) -> HttpResponse:
    """Which deployment is meant stands in a header."""
    name = request.headers.get("fireworks-deployment", "")
    found = services.find_by_name(request.actor, name)
    if request.method == "GET":
        return JsonResponse(describe_loading(found))
    identity = read_identity(request)
    request_load(actor=request.actor, deployment=found, identity=identity)
    return JsonResponse({"identity": identity, "status": "accepted"})


def read_identity(request: FiretitanRequest) -> str:
    """Each snapshot is whole here, whatever its program builds it on; and each load has a prompt
    cache of its own."""
    fields = read_fields(request.body)
    fields.flag("reset_prompt_cache", True)
    fields.inner("incremental_snapshot_metadata").text("previous_snapshot_identity", "")
    identity = fields.text("identity")
    if len(identity) > LONGEST_IDENTITY:
        raise UserError(
            f"identity has {len(identity)} characters: at most {LONGEST_IDENTITY} are kept, and it"
            " has to be told again as it was posted.",
            field="identity",
        )
    return identity
