"""Pages of runs: the list, one run, and what a person may press."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils.timezone import now
from django.views.decorators.http import require_GET, require_POST

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.core.counts import read_count
from webapp.core.errors import NotFound, UserError
from webapp.core.streams import StreamedResponse, stream_csv
from webapp.fleet.capacity import read_capacity
from webapp.runs import steering
from webapp.runs.annotations import read_annotations
from webapp.runs.branch_curves import read_branches
from webapp.runs.branches import has_family
from webapp.runs.data_tab import read_data
from webapp.runs.export import Export, export_run
from webapp.runs.filmstrip import arrange_samples
from webapp.runs.findings import list_entries, list_open, read_badges, read_looked_at
from webapp.runs.history import Point, list_keys, read_metrics, split_drawn
from webapp.runs.lists import RunQuery, list_runs
from webapp.runs.methods import METHODS
from webapp.runs.models import Run, Sample
from webapp.runs.progress import read_stats
from webapp.runs.rollout_pages import RECIPES, read_rollouts
from webapp.runs.standing import explain_wait, explain_waits
from webapp.runs.steering_forms import KlCoefficientForm, LearningRateForm

MAX_POINTS = 2_000  # of one curve at once; more are thinned, and the extremes stay
LOG_LINES = 500
HEADINGS = (
    ("name", "name", "Name", ""),
    ("status", "status", "Status", ""),
    ("", "", "Origin", ""),
    ("", "", "Base model", ""),
    ("", "", "Method", ""),
    ("step", "-step", "Step", "number"),
    ("loss", "loss", "Loss", "number"),
    ("speed", "-speed", "Tokens/s", "number"),
    ("created", "-created", "Created", "number"),
)


@login_required
@require_GET
def show_runs(request: ActorRequest) -> HttpResponse:
    query = RunQuery.read(request.GET)
    page = list_runs(request.actor, query)
    context = {
        "page": page,
        "standings": explain_waits(page.rows, read_capacity()),
        "badges": read_badges(run.pk for run in page.rows),
        "query": query,
        "headings": [_make_heading(query, *heading) for heading in HEADINGS],
        "statuses": Run.Status.values,
        "is_filtered": bool(query.text or query.status or query.cursor),
    }
    return render(request, "runs/list.html", context)


def _make_heading(query: RunQuery, column: str, sort: str, label: str, css: str) -> dict[str, str]:
    """Pressing the sorted column turns it round; any other begins with its own direction."""
    is_sorted = bool(column) and query.column == column
    turned = column if query.is_falling else f"-{column}"
    return {
        "label": label,
        "css": css,
        "sort": turned if is_sorted else sort,
        "aria": ("descending" if query.is_falling else "ascending") if is_sorted else "",
    }


def find_run(actor: Actor, run_id: str) -> Run:
    rows = Run.objects.visible_to(actor).select_related(
        "base_model", "dataset_version__dataset", "parent__run", "session", "created_by", "after"
    )
    run = rows.filter(pk=run_id).first()
    if run is None:
        raise NotFound(f"There is no run {run_id}.")
    return run


@login_required
@require_GET
def show_run(request: ActorRequest, run_id: str) -> HttpResponse:
    run = find_run(request.actor, run_id)
    tab = request.GET.get("tab", "charts")
    if tab not in TAB_READERS:
        raise NotFound("There is no such tab.")
    context = {
        "run": run,
        "method": METHODS.get(run.recipe),
        "tab": tab,
        "has_rollouts": run.recipe in RECIPES,
        "stats": read_stats(run),
        "wait": explain_wait(run),
        "newest": find_newest(run),
        "findings": list_open(run),
        "has_family": has_family(run),
        "rate_form": LearningRateForm(initial={"learning_rate": _read_now(run, "learning_rate")}),
        "kl_form": KlCoefficientForm(initial={"kl_coefficient": _read_now(run, "kl_coefficient")}),
        **_read_tab(request, run, tab),
    }
    return render(request, "runs/detail.html", context)


def find_newest(run: Run) -> Any | None:
    """The checkpoint that an ended run is for: what to serve, ask and evaluate next."""
    if not run.is_over:
        return None
    kept = run.checkpoints.filter(deleted_at=None, is_ephemeral=False).exclude(kind="external")
    return kept.order_by("-step", "-created_at").first()


def _read_now(run: Run, setting: str) -> float | None:
    """What it is steered to, or what it was launched with."""
    steered: float | None = run.steering.get(setting)
    return run.config.get(setting) if steered is None else steered


def _read_tab(request: HttpRequest, run: Run, tab: str) -> dict[str, Any]:
    return TAB_READERS[tab](request, run)


def _read_charts(_: HttpRequest, run: Run) -> dict[str, Any]:
    return {"keys": list_keys(run), **read_annotations(run)}


def _read_samples(request: HttpRequest, run: Run) -> dict[str, Any]:
    return {"film": arrange_samples(run, until=request.GET.get("until", ""))}


def _read_rollouts(request: HttpRequest, run: Run) -> dict[str, Any]:
    return read_rollouts(run, request.GET.dict())


def _read_data(request: HttpRequest, run: Run) -> dict[str, Any]:
    return read_data(run, request.GET.dict())


def _read_checkpoints(_: HttpRequest, run: Run) -> dict[str, Any]:
    return {"checkpoints": run.checkpoints.order_by("-step", "-created_at"), "now": now()}


def _read_evals(_: HttpRequest, run: Run) -> dict[str, Any]:
    return {"evaluations": run.evaluations.select_related("suite", "checkpoint")}


def _read_config(request: HttpRequest, run: Run) -> dict[str, Any]:
    adapter = {key: value for key, value in run.lora.items() if key not in run.config}
    return {"export": make_export(request, run), "adapter": adapter}


def _read_log(_: HttpRequest, run: Run) -> dict[str, Any]:
    return {"lines": run.log_lines.order_by("-pk")[:LOG_LINES]}


def _read_integrity(_: HttpRequest, run: Run) -> dict[str, Any]:
    return {"entries": list_entries(run), "looked_at": read_looked_at(run)}


TAB_READERS: Mapping[str, Callable[[HttpRequest, Run], dict[str, Any]]] = {
    "charts": _read_charts,
    "samples": _read_samples,
    "rollouts": _read_rollouts,
    "data": _read_data,
    "checkpoints": _read_checkpoints,
    "evals": _read_evals,
    "config": _read_config,
    "log": _read_log,
    "branches": read_branches,
    "integrity": _read_integrity,
}


def make_export(request: HttpRequest, run: Run) -> Export | None:
    """None: a client's own program is its script already."""
    if not run.recipe:
        return None
    return export_run(
        url=request.build_absolute_uri("/").rstrip("/"),
        name=run.name,
        base_model=run.base_model,
        version=run.dataset_version,
        config=run.config,
        recipe=run.recipe,
        parent=run.parent,
        with_optimizer=run.with_optimizer,
    )


@login_required
@require_GET
def show_part(request: ActorRequest, run_id: str, part: str) -> HttpResponse:
    """A piece of the page that asks for itself again when the server says that it changed."""
    run = find_run(request.actor, run_id)
    context: dict[str, Any] = {"run": run, "newest": find_newest(run)}
    if part == "stats":
        context |= {"stats": read_stats(run), "wait": explain_wait(run)}
    if part == "findings":
        context |= {"findings": list_open(run)}
    if part == "annotations":
        context |= read_annotations(run)
    return render(request, f"runs/_{part}.html", context)


@login_required
@require_GET
def read_points(request: ActorRequest, run_id: str) -> JsonResponse:
    """Everything after metric `after`, so a page that was away fetches what it lacks."""
    run = find_run(request.actor, run_id)
    after = read_count(request.GET.get("after", "0"), "after")
    history = read_metrics(run, after_id=after, max_points=MAX_POINTS)
    series = {key: write_series(points) for key, points in history.series.items()}
    return JsonResponse({"last": history.last_id, "series": series})


def write_series(points: Sequence[Point]) -> dict[str, Any]:
    drawn, num_left_out = split_drawn(points)
    return {
        "steps": [point.step for point in drawn],
        "values": [point.value for point in drawn],
        "times": [round(point.at.timestamp(), 1) for point in drawn],
        "left_out": num_left_out,
    }


@login_required
@require_GET
def download_points(request: ActorRequest, run_id: str) -> StreamedResponse:
    """Every point of the asked keys, none thinned."""
    run = find_run(request.actor, run_id)
    rows = run.metrics.order_by("key", "step")
    if keys := request.GET.getlist("key"):
        rows = rows.filter(key__in=keys)
    values = rows.values_list("key", "step", "value", "at")

    def lines() -> Iterator[list[Any]]:
        yield ["key", "step", "value", "at"]
        for key, step, value, at in values.iterator():
            yield [key, step, value, at.isoformat()]

    return stream_csv(lines(), f"{run.pk}.csv")


@login_required
@require_GET
def show_tokens(request: ActorRequest, run_id: str, sample_id: int) -> HttpResponse:
    """One answer token by token, shaded by how sure the model was."""
    run = find_run(request.actor, run_id)
    sample = Sample.objects.filter(run=run, pk=sample_id).first()
    if sample is None:
        raise NotFound("There is no such sample.")
    return render(request, "runs/_tokens.html", {"run": run, "sample": sample})


ACTIONS = {
    "pause": (steering.request_pause, "The run pauses after this step."),
    "resume": (steering.resume_run, "The run goes on."),
    "stop": (steering.request_stop, "The run ends after this step; what it learned is saved."),
    "save": (steering.request_save, "A checkpoint is saved after this step."),
    "evaluate": (steering.request_evaluation, "Held-out loss and samples follow this step."),
    "stop-after-save": (steering.request_stop_after_save, "The run ends at its next checkpoint."),
}


@login_required
@require_POST
def act_on_run(request: ActorRequest, run_id: str, action: str) -> HttpResponse:
    run = find_run(request.actor, run_id)
    check_can_write(request.actor, project_id=run.project_id)
    if action not in ACTIONS:
        raise NotFound("There is no such action.")
    act, said = ACTIONS[action]
    act(actor=request.actor, run=run)
    messages.success(request, said)
    return redirect("run", run.pk)


@login_required
@require_POST
def change_learning_rate(request: ActorRequest, run_id: str) -> HttpResponse:
    run = find_run(request.actor, run_id)
    check_can_write(request.actor, project_id=run.project_id)
    form = LearningRateForm(request.POST)
    if not form.is_valid():
        raise UserError("The learning rate lies above 0 and up to 1.", field="learning_rate")
    steering.change_learning_rate(
        actor=request.actor, run=run, learning_rate=form.cleaned_data["learning_rate"]
    )
    messages.success(request, "The learning rate changes with the next step.")
    return redirect("run", run.pk)


@login_required
@require_POST
def change_kl_coefficient(request: ActorRequest, run_id: str) -> HttpResponse:
    run = find_run(request.actor, run_id)
    check_can_write(request.actor, project_id=run.project_id)
    form = KlCoefficientForm(request.POST)
    if not form.is_valid():
        raise UserError("The KL coefficient is a number from 0 on.", field="kl_coefficient")
    steering.change_kl_coefficient(
        actor=request.actor, run=run, kl_coefficient=form.cleaned_data["kl_coefficient"]
    )
    messages.success(request, "The KL coefficient changes with the next step.")
    return redirect("run", run.pk)
