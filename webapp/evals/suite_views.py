"""Making a suite: its items, its graders row by row, and how answers are sampled."""

import secrets

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.core.forms import show_errors
from webapp.datasets.models import DatasetVersion
from webapp.evals.forms import GRADERS_OF, SOURCES, TASKS, SuiteForm
from webapp.evals.grader_forms import GraderForm, begin_rows, read_rows
from webapp.evals.models import EvalSuite
from webapp.evals.services import create_suite
from webapp.evals.task_forms import TaskForm
from webapp.evals.task_suites import create_task_suite

LM_EVAL = settings.ROOT / ".venv-lm-eval" / "bin" / "lm_eval"


@login_required
@require_http_methods(["GET", "POST"])
def create(request: ActorRequest) -> HttpResponse:
    check_can_write(request.actor)
    source = request.GET.get("source", "")
    source = source if source in dict(SOURCES) else "dataset"
    initial = {"dataset_version": request.GET.get("version", "")}
    form = SuiteForm(request.POST or None, actor=request.actor, source=source, initial=initial)
    graders = (
        read_rows(request.POST, request.actor)
        if request.method == "POST"
        else begin_rows(request.actor, [GRADERS_OF[source]])
    )
    are_good = [row.is_valid() for row in graders] if request.method == "POST" else []
    if request.method == "POST" and form.is_valid() and all(are_good):
        with show_errors(form):
            return redirect("suite", _create(request.actor, form, graders).pk)
    context = {
        "form": form,
        "graders": graders,
        "source": source,
        "sources": SOURCES,
        "tasks": TASKS,
    }
    is_bad = form.errors or not all(are_good)
    return render(request, "evals/new.html", context, status=400 if is_bad else 200)


def _create(actor: Actor, form: SuiteForm, graders: list[GraderForm]) -> EvalSuite:
    chosen = form.cleaned_data
    sampling, rows = form.write_sampling(), [row.write() for row in graders]
    if form.source != "dataset":
        return create_suite(
            actor=actor,
            name=chosen["name"],
            graders=rows,
            spec=form.write_spec(),
            sampling=sampling,
        )
    version = DatasetVersion.objects.visible_to(actor).get(pk=chosen["dataset_version"])
    return create_suite(
        actor=actor,
        name=chosen["name"],
        graders=rows,
        dataset_version=version,
        held_out_share=chosen["held_out_share"],
        seed=chosen["seed"],
        limit=chosen["limit"],
        sampling=sampling,
    )


@login_required
@require_http_methods(["GET", "POST"])
def create_task(request: ActorRequest) -> HttpResponse:
    """Of lm-eval. The service refuses who is no owner; the page says so before."""
    check_can_write(request.actor)
    form = TaskForm(request.POST or None, request.FILES or None, actor=request.actor)
    if request.method == "POST" and form.is_valid():
        with show_errors(form):
            return redirect("suite", _create_task(request.actor, form).pk)
    context = {"form": form, "is_installed": LM_EVAL.exists()}
    return render(request, "evals/new_task.html", context, status=400 if form.errors else 200)


def _create_task(actor: Actor, form: TaskForm) -> EvalSuite:
    chosen = form.cleaned_data
    versions = DatasetVersion.objects.visible_to(actor)
    return create_task_suite(
        actor=actor,
        name=chosen["name"],
        task=chosen["task"],
        rows=chosen["rows"],
        dataset_version=versions.filter(pk=chosen["dataset_version"]).first(),
        is_chat=chosen["is_chat"],
    )


@login_required
@require_GET
def show_grader(request: ActorRequest) -> HttpResponse:
    """One row, as it is for the kind that was chosen in it; a new one where none was."""
    rows = read_rows(request.GET, request.actor)
    number = secrets.randbelow(10**9)
    row = rows[0] if rows else begin_row(request.actor, number)
    return render(request, "evals/_grader.html", {"row": unbind(row, request.actor)})


@login_required
@require_GET
def remove_grader(_request: ActorRequest) -> HttpResponse:
    """Nothing, in a row's place."""
    return HttpResponse()


def begin_row(actor: Actor, number: int) -> GraderForm:
    return GraderForm(actor=actor, number=number, initial={"name": "contains"})


def unbind(row: GraderForm, actor: Actor) -> GraderForm:
    """With what was typed, and without complaints of what was not typed yet."""
    if not row.is_bound:
        return row
    typed = {name: row.data.get(f"{row.prefix}-{name}", "") for name in row.fields}
    return GraderForm(actor=actor, number=row.number, initial=typed)
