"""Pages of datasets: the list, uploads, and a version with its report and preview."""

from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.db.models import Count, F, Max, Prefetch, Q
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.core.errors import NotFound
from webapp.core.forms import show_errors
from webapp.core.streams import StreamedResponse
from webapp.datasets.deriving import describe_derivation
from webapp.datasets.exports import export_version
from webapp.datasets.forms import ImportForm, UploadForm
from webapp.datasets.imports import start_import
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.datasets.reports import (
    KIND_USES,
    KIND_WORDS,
    describe_preview,
    describe_report,
    write_rest,
)
from webapp.datasets.services import (
    choose_kind,
    create_version,
    decide,
    delete_version,
    request_preview,
    retry_preview,
)
from webapp.datasets.tokens import show_masked
from webapp.fleet.models import BaseModel

DEMO = "function-calls"
DATASETS_A_PAGE = 50
BAD_LINES_A_PAGE = 20
PREVIEW_ROWS_A_PAGE = 4
DERIVED_SHOWN = 50

Status = DatasetVersion.Status


@login_required
@require_GET
def list_datasets(request: ActorRequest) -> HttpResponse:
    search = request.GET.get("q", "").strip()
    rows = (
        Dataset.objects.in_project(request.actor)
        .annotate(num_versions=Count("versions"), changed_at=Max("versions__created_at"))
        .order_by(F("changed_at").desc(nulls_last=True), "pk")
    )
    if search:
        rows = rows.filter(Q(name__icontains=search) | Q(pk=search))
    page = Paginator(rows, DATASETS_A_PAGE).get_page(request.GET.get("page"))
    versions = DatasetVersion.objects.defer("report").filter(dataset__in=[row.pk for row in page])
    newest = {version.dataset_id: version for version in versions.order_by("number")}
    context = {
        "page": page,
        "rows": [(row, newest[row.pk]) for row in page if row.pk in newest],
        "search": search,
        "demo": _find_demo(request.actor),
    }
    return render(request, "datasets/list.html", context)


def _find_demo(actor: Actor) -> DatasetVersion | None:
    """The newest demo version of another project of the same person."""
    return (
        DatasetVersion.objects.visible_to(actor)
        .filter(dataset__name=DEMO, status=Status.READY)
        .select_related("dataset")
        .first()
    )


@login_required
@require_http_methods(["GET", "POST"])
def upload(request: ActorRequest) -> HttpResponse:
    check_can_write(request.actor)
    form = UploadForm(
        request.POST or None, request.FILES or None, initial={"name": request.GET.get("name", "")}
    )
    if request.method == "POST" and form.is_valid():
        with show_errors(form):
            version = create_version(
                actor=request.actor,
                name=form.cleaned_data["name"],
                upload=form.cleaned_data["file"],
                kind=form.cleaned_data["kind"],
            )
            return redirect("version", version.pk)
    names = Dataset.objects.in_project(request.actor).values_list("name", flat=True)
    context = {"form": form, "names": names, "limit": settings.MAX_UPLOAD_BYTES}
    return render(request, "datasets/upload.html", context, status=400 if form.errors else 200)


@login_required
@require_http_methods(["GET", "POST"])
def import_rows(request: ActorRequest) -> HttpResponse:
    check_can_write(request.actor)
    form = ImportForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        with show_errors(form):
            version = start_import(request.actor, form.cleaned_data)
            return redirect("version", version.pk)
    names = Dataset.objects.in_project(request.actor).values_list("name", flat=True)
    context = {"form": form, "names": names, "folder": settings.HONE_IMPORT_DIR}
    return render(request, "datasets/import.html", context, status=400 if form.errors else 200)


@login_required
@require_GET
def show_dataset(request: ActorRequest, dataset_id: str) -> HttpResponse:
    versions = DatasetVersion.objects.defer("report").select_related("created_by")
    dataset = (
        Dataset.objects.visible_to(request.actor)
        .prefetch_related(Prefetch("versions", versions.annotate(num_runs=Count("runs"))))
        .filter(pk=dataset_id)
        .first()
    )
    if dataset is None:
        raise NotFound(f"There is no dataset {dataset_id}.")
    return render(request, "datasets/dataset.html", {"dataset": dataset})


def find_version(actor: Actor, version_id: str) -> DatasetVersion:
    rows = DatasetVersion.objects.visible_to(actor).select_related(
        "dataset", "created_by", "derived_from__dataset"
    )
    version = rows.filter(pk=version_id).first()
    if version is None:
        raise NotFound(f"There is no dataset version {version_id}.")
    return version


@login_required
@require_GET
def show_version(request: ActorRequest, version_id: str) -> HttpResponse:
    version = find_version(request.actor, version_id)
    base_models = list(BaseModel.objects.prefetch_related("names").filter(has_chat_template=True))
    context = {
        **_describe_report(request, version),
        "version": version,
        "word": f"v{version.number}",
        "tab": "rows",
        "phrases": describe_derivation(version),
        "derived": list_derived(version),
        "same": find_same(version),
        "kind": KIND_WORDS.get(version.kind, ""),
        "kinds": [
            (kind, KIND_WORDS[kind], KIND_USES[kind]) for kind in version.report.get("kinds", [])
        ],
        "base_models": base_models,
        "base_model": next(iter(base_models), None),
        "runs": version.runs.select_related("base_model").order_by("-created_at")[:10],
        "rest": write_rest(request, version),
    }
    return render(request, "datasets/version.html", context)


def list_derived(version: DatasetVersion) -> list[DatasetVersion]:
    rows = version.derived.select_related("dataset").defer("report")
    return list(rows.order_by("created_at")[:DERIVED_SHOWN])


def find_same(version: DatasetVersion) -> list[DatasetVersion]:
    """Versions of the project that hold the very same rows: their digest is the same."""
    if not version.digest:
        return []
    rows = DatasetVersion.objects.filter(project=version.project_id, digest=version.digest)
    others = rows.exclude(pk=version.pk).select_related("dataset").defer("report")
    return list(others.order_by("created_at")[:5])


def _describe_report(request: ActorRequest, version: DatasetVersion) -> dict[str, Any]:
    """The bad lines of one page. The report keeps the first hundred; `num_bad` counts all."""
    lines = version.report.get("bad", [])
    return {
        "report": version.report,
        "stats": describe_report(version),
        "bad_lines": Paginator(lines, BAD_LINES_A_PAGE).get_page(request.GET.get("page")),
        "num_unlisted": version.num_bad - len(lines),
        "num_lines": version.num_rows + version.num_bad,
    }


@login_required
@require_GET
def show_status(request: ActorRequest, version_id: str) -> HttpResponse:
    """Asked while a version is validated; the page is loaded again once that has ended."""
    version = find_version(request.actor, version_id)
    response = render(request, "datasets/_validating.html", {"version": version})
    if version.status != Status.VALIDATING:
        response.headers["HX-Refresh"] = "true"
    return response


@login_required
@require_GET
def show_preview(request: ActorRequest, version_id: str) -> HttpResponse:
    version = find_version(request.actor, version_id)
    base_model = BaseModel.objects.filter(pk=request.GET.get("base_model", "")).first()
    if base_model is None:
        raise NotFound("There is no such base model.")
    find = retry_preview if request.GET.get("retry") else request_preview
    preview = find(version=version, base_model=base_model)
    page = Paginator(preview.rows or [], PREVIEW_ROWS_A_PAGE).get_page(request.GET.get("page"))
    context = {
        "version": version,
        "base_model": base_model,
        "preview": preview,
        "stats": describe_preview(preview.stats),
        "page": page,
        "rows": [{**row, "tokens": show_masked(row["tokens"])} for row in page],
    }
    return render(request, "datasets/_preview.html", context)


@login_required
@require_GET
def download_rows(request: ActorRequest, version_id: str, format: str) -> StreamedResponse:
    return export_version(find_version(request.actor, version_id), format)


@login_required
@require_POST
def decide_version(request: ActorRequest, version_id: str) -> HttpResponse:
    version = find_version(request.actor, version_id)
    if kind := request.POST.get("kind"):
        choose_kind(actor=request.actor, version=version, kind=kind)
        return redirect("version", version.pk)
    keep_valid = request.POST.get("keep_valid") == "1"
    decide(actor=request.actor, version=version, keep_valid=keep_valid)
    return redirect("version", version.pk)


@login_required
@require_POST
def remove_version(request: ActorRequest, version_id: str) -> HttpResponse:
    version = find_version(request.actor, version_id)
    delete_version(actor=request.actor, version=version)
    messages.success(request, f"{version} was deleted.")
    return redirect("datasets")
