"""Pages of checkpoints: the list, and one with its proof and lineage."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_POST

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.checkpoints.budgets import read_use
from webapp.checkpoints.downloads import stream_archive
from webapp.checkpoints.forms import CheckpointFilter, offer_runs
from webapp.checkpoints.lists import Sort, sum_sizes
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.scores import describe_score, read_evaluations
from webapp.checkpoints.services import delete_checkpoint, keep_checkpoint, set_pinned
from webapp.core.curl import JSON, KEY
from webapp.core.errors import NotFound
from webapp.core.templatetags.hone import count, exact, percent, size

CHECKPOINTS_A_PAGE = 50
EVALUATIONS_SHOWN = 20
DELTAS_SHOWN = 20


@login_required
@require_GET
def list_checkpoints(request: ActorRequest) -> HttpResponse:
    form = CheckpointFilter(request.GET)
    alive = Checkpoint.objects.in_project(request.actor).alive()
    sort = Sort.read(request.GET)
    rows = sort.apply(form.apply(alive).select_related("run__parent", "base_model"))
    page = Paginator(
        rows.prefetch_related("base_model__names", "deployments"), CHECKPOINTS_A_PAGE
    ).get_page(request.GET.get("page"))
    context = {
        "page": page,
        "chosen": form.cleaned_data,
        "runs": offer_runs(request.actor),
        "headings": sort.make_headings(),
        "shown": sum_sizes(rows),
        "use": read_use(request.actor.project),
        "is_filtered": any(form.cleaned_data.values()),
        "is_first": not any(request.GET.values()) and not page.object_list,
    }
    return render(request, "checkpoints/list.html", context)


def find_checkpoint(actor: Actor, checkpoint_id: str) -> Checkpoint:
    """Deleted ones too: their page says so, and keeps their place in the lineage."""
    rows = Checkpoint.objects.visible_to(actor).select_related(
        "base_model", "run__dataset_version__dataset", "run__parent", "project", "previous"
    )
    checkpoint = rows.filter(pk=checkpoint_id).first()
    if checkpoint is None:
        raise NotFound(f"There is no checkpoint {checkpoint_id}.")
    return checkpoint


@login_required
@require_GET
def show_checkpoint(request: ActorRequest, checkpoint_id: str) -> HttpResponse:
    checkpoint = find_checkpoint(request.actor, checkpoint_id)
    evaluations = read_evaluations().filter(checkpoint=checkpoint)[:EVALUATIONS_SHOWN]
    context = {
        "checkpoint": checkpoint,
        "load": checkpoint.hot_loads.first(),
        "stats": describe(checkpoint),
        "deltas": checkpoint.deltas.filter(deleted_at=None).order_by("step")[:DELTAS_SHOWN],
        "evaluations": [(each, describe_score(each)) for each in evaluations],
        "exports": checkpoint.exports.all(),
        "rest": write_rest(request, checkpoint),
    }
    return render(request, "checkpoints/checkpoint.html", context)


def describe(checkpoint: Checkpoint) -> list[tuple[str, str, str]]:
    """Label, value and note of its stat cards."""
    optimizer = "optimizer included" if checkpoint.has_optimizer else "weights alone"
    return [
        ("Step", count(checkpoint.step), f"operation {count(checkpoint.seq)} of the log"),
        describe_shape(checkpoint),
        ("Size", size(checkpoint.size_bytes), optimizer),
        ("Saved", exact(checkpoint.created_at).partition(",")[0], describe_end(checkpoint)),
    ]


def describe_shape(checkpoint: Checkpoint) -> tuple[str, str, str]:
    if not checkpoint.is_full:
        return "Rank", str(checkpoint.rank), "LoRA"
    if checkpoint.is_delta:
        return "Weights", "All", f"as a delta: {percent(checkpoint.ratio)} of a whole model"
    return "Weights", "All", "as a whole model"


def describe_end(checkpoint: Checkpoint) -> str:
    if checkpoint.deleted_at is not None:
        return "deleted"
    if checkpoint.is_pinned:
        return "pinned"
    return f"until {exact(checkpoint.expires_at)}" if checkpoint.expires_at else "kept"


def write_rest(request: ActorRequest, checkpoint: Checkpoint) -> str:
    url = request.build_absolute_uri(f"/rest/checkpoints/{checkpoint.pk}")
    merge = f"""curl {KEY} {JSON} {url}/exports -d '{{"kind": "merged"}}'"""
    return f"curl {KEY} {url}\ncurl {KEY} {url}/download | tar -x\n{merge}"


@login_required
@require_GET
def download(request: ActorRequest, checkpoint_id: str) -> HttpResponseBase:
    return stream_archive(find_checkpoint(request.actor, checkpoint_id))


@login_required
@require_POST
def keep(request: ActorRequest, checkpoint_id: str) -> HttpResponse:
    checkpoint = find_checkpoint(request.actor, checkpoint_id)
    check_can_write(request.actor, project_id=checkpoint.project_id)
    keep_checkpoint(actor=request.actor, checkpoint=checkpoint)
    messages.success(request, f"{checkpoint.name} stays until somebody deletes it.")
    return redirect("checkpoint", checkpoint.pk)


@login_required
@require_POST
def pin(request: ActorRequest, checkpoint_id: str) -> HttpResponse:
    """Pressed again it is unpinned: the form says which."""
    checkpoint = find_checkpoint(request.actor, checkpoint_id)
    check_can_write(request.actor, project_id=checkpoint.project_id)
    is_pinned = request.POST.get("pinned") != "0"
    set_pinned(actor=request.actor, checkpoint=checkpoint, is_pinned=is_pinned)
    said = "No rule deletes it." if is_pinned else "Rules may delete it again."
    messages.success(request, said)
    return redirect("checkpoint", checkpoint.pk)


@login_required
@require_POST
def delete(request: ActorRequest, checkpoint_id: str) -> HttpResponse:
    checkpoint = find_checkpoint(request.actor, checkpoint_id)
    check_can_write(request.actor, project_id=checkpoint.project_id)
    delete_checkpoint(actor=request.actor, checkpoint=checkpoint)
    messages.success(request, f"{checkpoint.name} was deleted; its place in the lineage stays.")
    return redirect("checkpoints")
