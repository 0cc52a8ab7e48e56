"""Pages of deployments: what is served, with the proof that it is that, and how to change it."""

from collections.abc import Sequence
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.db.models import Q
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.checkpoints.models import Checkpoint
from webapp.core.errors import NotFound
from webapp.core.forms import show_errors
from webapp.deployments.examples import write_examples
from webapp.deployments.forms import ChangeForm, DeploymentForm, ScaleForm
from webapp.deployments.models import Deployment, HotLoad, Replica, SamplingCall
from webapp.deployments.proofs import compare_probe
from webapp.deployments.queries import (
    choose_replicas,
    describe_engines,
    find_last_load,
    find_pending,
    find_way_back,
    for_list,
    list_changes,
    list_replicas_for,
    list_replicas_of,
)
from webapp.deployments.replicas import scale_deployment
from webapp.deployments.services import (
    change_checkpoint,
    create_deployment,
    delete_deployment,
    roll_back,
    stop_deployment,
)
from webapp.deployments.standing import Standing, describe_standing, list_lines
from webapp.deployments.traffic import read_traffic
from webapp.fleet.models import BaseModel

DEPLOYMENTS_A_PAGE = 50
LOADS_SHOWN = 20
OTHERS_OFFERED = 10


@login_required
@require_GET
def list_deployments(request: ActorRequest) -> HttpResponse:
    rows = for_list(Deployment.objects.in_project(request.actor))
    page = Paginator(rows, DEPLOYMENTS_A_PAGE).get_page(request.GET.get("page"))
    replicas = list(list_replicas_for(request.actor))
    context = {
        "page": page,
        "rows": [
            (row, next(iter(row.hot_loads.all()), None), stand(row, replicas)) for row in page
        ],
        "engines": describe_engines(replicas),
    }
    return render(request, "deployments/list.html", context)


def stand(deployment: Deployment, replicas: Sequence[Replica]) -> Standing:
    return describe_standing(deployment, choose_replicas(deployment, replicas))


@login_required
@require_http_methods(["GET", "POST"])
def create(request: ActorRequest) -> HttpResponse:
    check_can_write(request.actor)
    initial = {"target": request.GET.get("checkpoint", ""), "name": request.GET.get("name", "")}
    form = DeploymentForm(request.POST or None, actor=request.actor, initial=initial)
    if request.method == "POST" and form.is_valid():
        with show_errors(form):
            return redirect("deployment", _create(request.actor, form.cleaned_data).pk)
    context = {"form": form, "others": list_others(request.actor, initial["target"])}
    status = 400 if form.errors else 200
    return render(request, "deployments/new.html", context, status=status)


def list_others(actor: Actor, checkpoint_id: str) -> list[Deployment]:
    """Where a checkpoint could be promoted, in place of a deployment of its own."""
    checkpoint = Checkpoint.objects.in_project(actor).filter(pk=checkpoint_id).first()
    if checkpoint is None:
        return []
    fitting = Deployment.objects.in_project(actor).filter(base_model=checkpoint.base_model_id)
    return list(fitting.exclude(checkpoint=checkpoint)[:OTHERS_OFFERED])


def _create(actor: Actor, chosen: dict[str, Any]) -> Deployment:
    checkpoint, base_model = find_target(actor, chosen["target"])
    return create_deployment(
        actor=actor,
        name=chosen["name"],
        checkpoint=checkpoint,
        base_model=base_model,
        num_replicas=chosen["num_replicas"],
    )


def find_target(actor: Actor, target: str) -> tuple[Checkpoint | None, BaseModel | None]:
    """The checkpoint or the base model with this id."""
    checkpoints = Checkpoint.objects.visible_to(actor).select_related("base_model", "run")
    checkpoint = checkpoints.filter(pk=target).first()
    if checkpoint is not None:
        return checkpoint, None
    base_model = BaseModel.objects.filter(pk=target).first()
    if base_model is None:
        raise NotFound("There is no such checkpoint or base model.")
    return None, base_model


def find_deployment(actor: Actor, deployment_id: str) -> Deployment:
    rows = Deployment.objects.visible_to(actor).select_related("base_model", "checkpoint__run")
    deployment = rows.filter(pk=deployment_id).first()
    if deployment is None:
        raise NotFound(f"There is no deployment {deployment_id}.")
    return deployment


def find_mine(request: ActorRequest, deployment_id: str) -> Deployment:
    """One that whoever asks may change."""
    deployment = find_deployment(request.actor, deployment_id)
    check_can_write(request.actor, project_id=deployment.project_id)
    return deployment


@login_required
@require_GET
def show_deployment(request: ActorRequest, deployment_id: str) -> HttpResponse:
    return _render(request, find_deployment(request.actor, deployment_id))


def _render(
    request: ActorRequest,
    deployment: Deployment,
    *,
    form: ChangeForm | None = None,
    scale_form: ScaleForm | None = None,
) -> HttpResponse:
    serving = read_serving(request.actor, deployment.pk)
    deployment = serving["deployment"]
    form = form or ChangeForm(
        actor=request.actor, deployment=deployment, chosen=request.GET.get("checkpoint", "")
    )
    scale_form = scale_form or ScaleForm(initial={"num_replicas": deployment.num_replicas})
    url = request.build_absolute_uri("/").rstrip("/")
    context = {
        **serving,
        "form": form,
        "scale_form": scale_form,
        "examples": write_examples(url, deployment),
    }
    status = 400 if form.errors or scale_form.errors else 200
    return render(request, "deployments/deployment.html", context, status=status)


def read_serving(actor: Actor, deployment_id: str) -> dict[str, Any]:
    """What changes while the page is open.

    Its changes before itself: of one that is served in between the page then says that it still
    waits, and looks again. The other way round it would go on showing what was served before.
    """
    pending, changes = find_pending(deployment_id), list_changes(deployment_id)
    deployment = find_deployment(actor, deployment_id)
    load = find_last_load(deployment)
    replicas = list_replicas_of(deployment)
    return {
        "deployment": deployment,
        "load": load,
        "tokens": compare_probe(load) if load else [],
        "loads": list_loads(deployment),
        "lines": list_lines(replicas),
        "engines": describe_engines(replicas),
        "standing": describe_standing(deployment, replicas),
        "pending": pending,
        "changes": changes,
        "has_identities": any(each.identity for each in changes),
        "refused": next((each for each in changes[:1] if each.status == each.Status.FAILED), None),
        "way_back": find_way_back(deployment),
        "traffic": read_traffic(SamplingCall.objects.filter(deployment=deployment)),
        "is_moving": pending is not None or deployment.status == Deployment.Status.LOADING,
    }


def list_loads(deployment: Deployment) -> list[HotLoad]:
    """A load serves whoever asks for its checkpoint, so a deployment may find one there."""
    loads = HotLoad.objects.filter(
        Q(deployment=deployment) | Q(checkpoint=deployment.checkpoint_id or "")
    )
    whole = loads.select_related("checkpoint__run", "replica").defer("checkpoint__probe")
    return list(whole[:LOADS_SHOWN])


@login_required
@require_POST
def change(request: ActorRequest, deployment_id: str) -> HttpResponse:
    """Other weights, or the same once more where loading them has failed."""
    deployment = find_mine(request, deployment_id)
    form = ChangeForm(request.POST, actor=request.actor, deployment=deployment)
    if form.is_valid():
        with show_errors(form):
            checkpoint, _ = find_target(request.actor, form.cleaned_data["checkpoint"])
            change_checkpoint(
                actor=request.actor,
                deployment=deployment,
                checkpoint=checkpoint,
                transition=form.cleaned_data["transition"],
            )
            return redirect("deployment", deployment.pk)
    return _render(request, deployment, form=form)


@login_required
@require_POST
def roll_back_to_last(request: ActorRequest, deployment_id: str) -> HttpResponse:
    deployment = find_mine(request, deployment_id)
    roll_back(actor=request.actor, deployment=deployment)
    return redirect("deployment", deployment.pk)


@login_required
@require_POST
def scale(request: ActorRequest, deployment_id: str) -> HttpResponse:
    deployment = find_mine(request, deployment_id)
    form = ScaleForm(request.POST)
    if form.is_valid():
        with show_errors(form):
            num_replicas = form.cleaned_data["num_replicas"]
            scale_deployment(actor=request.actor, deployment=deployment, num_replicas=num_replicas)
            return redirect("deployment", deployment.pk)
    return _render(request, deployment, scale_form=form)


@login_required
@require_POST
def stop(request: ActorRequest, deployment_id: str) -> HttpResponse:
    deployment = find_mine(request, deployment_id)
    stop_deployment(actor=request.actor, deployment=deployment)
    messages.success(request, f"{deployment.name} answers no more.")
    return redirect("deployment", deployment.pk)


@login_required
@require_POST
def delete(request: ActorRequest, deployment_id: str) -> HttpResponse:
    deployment = find_mine(request, deployment_id)
    delete_deployment(actor=request.actor, deployment=deployment)
    messages.success(request, f"{deployment.name} was deleted; its name is free again.")
    return redirect("deployments")
