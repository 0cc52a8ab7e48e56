"""Pages that make question-answer pairs of documents: the form, the review, the version."""

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.db.models import Count, Q
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.core.errors import NotFound
from webapp.core.forms import show_errors
from webapp.datasets.generations import (
    ACTIVE,
    cancel_generation,
    create_generation,
    delete_generation,
    find_pair,
    finish_generation,
    review_all,
    review_pair,
)
from webapp.datasets.models import Dataset
from webapp.datasets.records import GeneratedPair, Generation
from webapp.deployments.generation_forms import GenerationForm
from webapp.deployments.playground import choose_target

GENERATIONS_A_PAGE = 50
PAIRS_A_PAGE = 25

State = GeneratedPair.State


@login_required
@require_GET
def list_generations(request: ActorRequest) -> HttpResponse:
    rows = (
        Generation.objects.in_project(request.actor)
        .annotate(
            num_pairs=Count("passages__pairs"),
            num_accepted=Count("passages__pairs", filter=Q(passages__pairs__state=State.ACCEPTED)),
        )
        .order_by("-created_at", "pk")
    )
    page = Paginator(rows, GENERATIONS_A_PAGE).get_page(request.GET.get("page"))
    return render(request, "generations/list.html", {"page": page})


@login_required
@require_http_methods(["GET", "POST"])
def generate(request: ActorRequest) -> HttpResponse:
    check_can_write(request.actor)
    form = GenerationForm(request.POST or None, request.FILES or None, actor=request.actor)
    if request.method == "POST" and form.is_valid():
        with show_errors(form):
            generation = create_generation(
                actor=request.actor,
                name=form.cleaned_data["name"],
                documents=form.cleaned_data["documents"],
                options=form.write_options(),
                **read_target(request.actor, form.cleaned_data["target"]),
            )
            return redirect("generation", generation.pk)
    names = Dataset.objects.in_project(request.actor).values_list("name", flat=True)
    context = {"form": form, "names": names}
    status = 400 if form.errors else 200
    return render(request, "generations/new.html", context, status=status)


def read_target(actor: Actor, target: str) -> dict[str, Any]:
    """Who is asked: a deployment is what it serves now."""
    found = choose_target(actor, target)
    deployment = found.get("deployment")
    checkpoint = deployment.checkpoint if deployment else found.get("checkpoint")
    served = deployment or checkpoint
    base_model = served.base_model if served else found["base_model"]
    return {
        "base_model": base_model,
        "checkpoint_id": checkpoint.pk if checkpoint else None,
        "target": str(served or base_model),
    }


def find_generation(actor: Actor, generation_id: str) -> Generation:
    rows = Generation.objects.visible_to(actor).select_related(
        "project", "base_model", "version__dataset"
    )
    generation = rows.filter(pk=generation_id).first()
    if generation is None:
        raise NotFound(f"There is no generation {generation_id}.")
    return generation


@login_required
@require_GET
def show_generation(request: ActorRequest, generation_id: str) -> HttpResponse:
    generation = find_generation(request.actor, generation_id)
    state = request.GET.get("state", "")
    pairs = GeneratedPair.objects.filter(passage__generation=generation)
    counts = dict(pairs.order_by().values_list("state").annotate(Count("pk")))
    shown = pairs.filter(state=state) if state in State.values else pairs
    rows = shown.select_related("passage").order_by("passage__number", "number")
    context = {
        "generation": generation,
        "is_active": generation.status in ACTIVE,
        "num_passages": generation.passages.count(),
        "num_asked": generation.passages.filter(is_asked=True).count(),
        "without": generation.passages.exclude(error="")[:PAIRS_A_PAGE],
        "counts": [(each, counts.get(each, 0)) for each in State.values],
        "num_pairs": sum(counts.values()),
        "num_accepted": counts.get(State.ACCEPTED, 0),
        "num_proposed": counts.get(State.PROPOSED, 0),
        "state": state,
        "is_open": generation.version_id is None and generation.status != "done",
        "page": Paginator(rows, PAIRS_A_PAGE).get_page(request.GET.get("page")),
    }
    return render(request, "generations/detail.html", context)


@login_required
@require_POST
def review(request: ActorRequest, generation_id: str, pair_id: int) -> HttpResponse:
    pair = find_pair(find_generation(request.actor, generation_id), pair_id)
    review_pair(
        actor=request.actor,
        pair=pair,
        state=request.POST.get("state", ""),
        question=request.POST.get("question"),
        answer=request.POST.get("answer"),
    )
    context = {"pair": pair, "generation": pair.passage.generation, "is_open": True}
    return render(request, "generations/_pair.html", context)


@login_required
@require_POST
def act(request: ActorRequest, generation_id: str, verb: str) -> HttpResponse:
    """Cancel, accept or reject what is left, make the version, delete."""
    generation = find_generation(request.actor, generation_id)
    if verb == "cancel":
        cancel_generation(actor=request.actor, generation=generation)
    elif verb in ("accept", "reject"):
        state = State.ACCEPTED if verb == "accept" else State.REJECTED
        review_all(actor=request.actor, generation=generation, state=state)
    elif verb == "finish":
        version = finish_generation(actor=request.actor, generation=generation)
        return redirect("version", version.pk)
    elif verb == "delete":
        delete_generation(actor=request.actor, generation=generation)
        messages.success(request, f"The pairs of {generation} were deleted.")
        return redirect("generations")
    else:
        raise NotFound("There is no such act.")
    return redirect("generation", generation.pk)
