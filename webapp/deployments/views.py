"""Pages of deployments: what is served, with the proof that it is that."""

import json
from dataclasses import dataclass

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
from webapp.deployments.forms import ChangeForm, DeploymentForm
from webapp.deployments.models import Deployment, HotLoad
from webapp.deployments.queries import find_last_load
from webapp.deployments.services import change_checkpoint, create_deployment, stop_deployment
from webapp.fleet.models import BaseModel

DEPLOYMENTS_A_PAGE = 50
LOADS_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedToken:
    """One token of the probe: what the trainer and the server think of it, in nats."""

    place: int
    id: int
    trainer: float
    server: float
    difference: float
    is_largest: bool


@login_required
@require_GET
def list_deployments(request: ActorRequest) -> HttpResponse:
    rows = (
        Deployment.objects.in_project(request.actor)
        .select_related("base_model", "checkpoint__run")
        .defer("checkpoint__probe")
        .prefetch_related("base_model__names", "hot_loads")
    )
    page = Paginator(rows, DEPLOYMENTS_A_PAGE).get_page(request.GET.get("page"))
    lines = [(row, next(iter(row.hot_loads.all()), None)) for row in page]
    return render(request, "deployments/list.html", {"page": page, "rows": lines})


@login_required
@require_http_methods(["GET", "POST"])
def create(request: ActorRequest) -> HttpResponse:
    check_can_write(request.actor)
    initial = {"target": request.GET.get("checkpoint", ""), "name": request.GET.get("name", "")}
    form = DeploymentForm(request.POST or None, actor=request.actor, initial=initial)
    if request.method == "POST" and form.is_valid():
        with show_errors(form):
            checkpoint, base_model = find_target(request.actor, form.cleaned_data["target"])
            deployment = create_deployment(
                actor=request.actor,
                name=form.cleaned_data["name"],
                checkpoint=checkpoint,
                base_model=base_model,
            )
            return redirect("deployment", deployment.pk)
    status = 400 if form.errors else 200
    return render(request, "deployments/new.html", {"form": form}, status=status)


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


@login_required
@require_GET
def show_deployment(request: ActorRequest, deployment_id: str) -> HttpResponse:
    deployment = find_deployment(request.actor, deployment_id)
    return _render(request, deployment, ChangeForm(actor=request.actor, deployment=deployment))


def _render(request: ActorRequest, deployment: Deployment, form: ChangeForm) -> HttpResponse:
    load = find_last_load(deployment)
    # A load serves whoever asks for its checkpoint, so a deployment may find one that is there.
    loads = HotLoad.objects.filter(
        Q(deployment=deployment) | Q(checkpoint=deployment.checkpoint_id or "")
    )
    loads = loads.select_related("checkpoint__run").defer("checkpoint__probe")
    context = {
        "deployment": deployment,
        "load": load,
        "tokens": compare_probe(load) if load else [],
        "loads": loads[:LOADS_SHOWN],
        "form": form,
        "rest": write_rest(request, deployment),
    }
    status = 400 if form.errors else 200
    return render(request, "deployments/deployment.html", context, status=status)


def write_rest(request: ActorRequest, deployment: Deployment) -> str:
    """Ask, then read the answer by the id that came back."""
    url = request.build_absolute_uri("/rest/calls")
    header = '-H "Authorization: Bearer $HONE_KEY"'
    question = {
        "deployment": deployment.pk,
        "messages": [{"role": "user", "content": "Hello"}],
        "params": {"temperature": 0, "max_tokens": 128},
    }
    return (
        f"curl {header} -H 'Content-Type: application/json' \\\n"
        f"  -d '{json.dumps(question)}' \\\n  {url}\n\ncurl {header} {url}/ID"
    )


def compare_probe(load: HotLoad) -> list[ProbedToken]:
    """The first token of a sequence follows nothing, so there is no number for it."""
    probe = load.checkpoint.probe
    tokens, trainer = probe.get("tokens", []), probe.get("logprobs", [])
    pairs = list(zip(tokens[1:], trainer, load.server_logprobs, strict=False))
    differences = [abs(ours - theirs) for _, ours, theirs in pairs]
    largest = max(differences, default=0.0)
    return [
        ProbedToken(
            place=place,
            id=token,
            trainer=ours,
            server=theirs,
            difference=difference,
            is_largest=difference == largest,
        )
        for place, ((token, ours, theirs), difference) in enumerate(
            zip(pairs, differences, strict=True), start=2
        )
    ]


@login_required
@require_POST
def change(request: ActorRequest, deployment_id: str) -> HttpResponse:
    """Other weights, or the same once more where loading them has failed."""
    deployment = find_deployment(request.actor, deployment_id)
    check_can_write(request.actor, project_id=deployment.project_id)
    form = ChangeForm(request.POST, actor=request.actor, deployment=deployment)
    if form.is_valid():
        with show_errors(form):
            checkpoint, _ = find_target(request.actor, form.cleaned_data["checkpoint"])
            change_checkpoint(actor=request.actor, deployment=deployment, checkpoint=checkpoint)
            return redirect("deployment", deployment.pk)
    return _render(request, deployment, form)


@login_required
@require_POST
def stop(request: ActorRequest, deployment_id: str) -> HttpResponse:
    deployment = find_deployment(request.actor, deployment_id)
    check_can_write(request.actor, project_id=deployment.project_id)
    stop_deployment(actor=request.actor, deployment=deployment)
    messages.success(request, f"{deployment.name} answers no more.")
    return redirect("deployment", deployment.pk)
