"""Pages of a version beyond its rows: filters, duplicates and leaks, lengths, changes, export."""

from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.core.errors import UserError
from webapp.core.forms import show_errors
from webapp.core.templatetags.hone import percent
from webapp.datasets.analyses import Kind, request_analysis, retry_analysis
from webapp.datasets.derive_forms import DeriveForm
from webapp.datasets.deriving import derive_versions
from webapp.datasets.histograms import draw_histogram
from webapp.datasets.models import DatasetVersion
from webapp.datasets.reports import write_derive_rest
from webapp.datasets.views import find_version
from webapp.fleet.models import BaseModel

OTHERS_OFFERED = 200
SUITES_OFFERED = 100
SIMILARITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

Status = DatasetVersion.Status


@login_required
@require_http_methods(["GET", "POST"])
def derive(request: ActorRequest, version_id: str) -> HttpResponse:
    version = find_version(request.actor, version_id)
    check_can_write(request.actor, project_id=version.project_id)
    form = DeriveForm(request.POST or None, version=version, initial=request.GET.dict())
    if request.method == "POST" and form.is_valid():
        with show_errors(form):
            made = derive_versions(
                actor=request.actor,
                version=version,
                filters=form.write_filters(),
                split=form.write_split(),
                name=form.cleaned_data["name"],
            )
            return redirect("version", made[0].pk)
    context = {
        "version": version,
        "tab": "derive",
        "form": form,
        "rest": write_derive_rest(request, version),
    }
    status = 400 if form.errors else 200
    return render(request, "datasets/derive.html", context, status=status)


@login_required
@require_GET
def count_derived(request: ActorRequest, version_id: str) -> HttpResponse:
    """How many rows the filters of the form would keep."""
    version = find_version(request.actor, version_id)
    form = DeriveForm(request.GET, version=version)
    context: dict[str, Any] = {"version": version, "form": form}
    if form.is_valid():
        options = {"filters": form.write_filters(), "split": form.write_split()}
        try:
            context["analysis"] = request_analysis(
                actor=request.actor, version=version, kind=Kind.FILTERS, options=options
            )
        except UserError as error:
            context["error"] = error.message
    return render(request, "datasets/_count.html", context)


@login_required
@require_GET
def show_checks(request: ActorRequest, version_id: str) -> HttpResponse:
    version = find_version(request.actor, version_id)
    context = {
        "version": version,
        "tab": "checks",
        "others": list_others(request.actor, version),
        "suites": list_suites(request.actor),
        "similarities": SIMILARITIES,
        "sibling": find_sibling(version),
    }
    return render(request, "datasets/checks.html", context)


@login_required
@require_GET
def show_tokens(request: ActorRequest, version_id: str) -> HttpResponse:
    version = find_version(request.actor, version_id)
    models = list(BaseModel.objects.prefetch_related("names").filter(has_chat_template=True))
    chosen = next((each for each in models if each.pk == request.GET.get("base_model")), None)
    context = {
        "version": version,
        "tab": "tokens",
        "base_models": models,
        "base_model": chosen or next(iter(models), None),
    }
    return render(request, "datasets/tokens.html", context)


@login_required
@require_GET
def show_changes(request: ActorRequest, version_id: str) -> HttpResponse:
    version = find_version(request.actor, version_id)
    others = list_others(request.actor, version)
    wanted = request.GET.get("against", version.derived_from_id or "")
    earlier = next((each.pk for each in others if each.dataset_id == version.dataset_id), "")
    context = {
        "version": version,
        "tab": "changes",
        "others": others,
        "against": wanted or earlier,
    }
    return render(request, "datasets/changes.html", context)


@login_required
@require_GET
def show_analysis(request: ActorRequest, version_id: str, kind: str) -> HttpResponse:
    """Asked again by the page until a worker has the answer."""
    version = find_version(request.actor, version_id)
    find = retry_analysis if request.GET.get("retry") else request_analysis
    try:
        analysis = find(
            actor=request.actor, version=version, kind=kind, options=read_options(request.GET)
        )
    except UserError as error:
        return render(request, "datasets/_analysis.html", {"error": error.message})
    context = {
        "version": version,
        "analysis": analysis,
        "result": analysis.result,
        "partial": f"datasets/results/{kind}.html",
        "url": _write_url(request),
    }
    if kind == Kind.TOKENS and analysis.result:
        context["bars"] = draw_histogram(analysis.result)
        share = analysis.result["num_over"] / max(1, analysis.result["num_rows"])
        context["over"] = f"rows, {percent(share)} of all"
    return render(request, "datasets/_analysis.html", context)


def read_options(query: QueryDict) -> dict[str, Any]:
    options: dict[str, Any] = {
        name: value for name, value in query.items() if name != "retry" and value
    }
    if "threshold" in options:
        try:
            options["threshold"] = float(options["threshold"])
        except ValueError as error:
            raise UserError("The similarity is no number.", field="threshold") from error
    if other := options.pop("other", ""):
        kind, _, pk = other.partition(":")
        options[kind if kind in ("against", "suite") else "against"] = pk
    return options


def _write_url(request: ActorRequest) -> str:
    query = request.GET.copy()
    query.pop("retry", None)
    return f"{request.path}?{query.urlencode()}"


def list_others(actor: Actor, version: DatasetVersion) -> list[DatasetVersion]:
    """Of the same dataset first; newest first."""
    ready = DatasetVersion.objects.in_project(actor).filter(status=Status.READY)
    rows = ready.exclude(pk=version.pk).select_related("dataset").defer("report", "derivation")
    found = list(rows.order_by("-created_at")[:OTHERS_OFFERED])
    return sorted(found, key=lambda other: other.dataset_id != version.dataset_id)


def list_suites(actor: Actor) -> list[tuple[str, str]]:
    suites = actor.project.eval_suites.filter(status="ready", num_items__gt=0)
    return list(suites.values_list("pk", "name")[:SUITES_OFFERED])


def find_sibling(version: DatasetVersion) -> str:
    """The other side of the same split."""
    if not version.split or version.derived_from_id is None:
        return ""
    siblings = DatasetVersion.objects.filter(derived_from=version.derived_from_id).exclude(
        pk=version.pk
    )
    alike = siblings.filter(derivation=version.derivation, status=Status.READY)
    other = alike.exclude(split=version.split).order_by("-created_at").first()
    return "" if other is None else other.pk
