"""The launch page: the form, what it would cost, and the same as a program."""

from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.permissions import check_can_write
from webapp.core.forms import show_errors
from webapp.fleet.models import BaseModel
from webapp.runs.export import Export, export_run
from webapp.runs.forecast import Forecast, forecast_run
from webapp.runs.forms import FULL, LORA, LaunchForm, offer_rates
from webapp.runs.models import Origin, Run
from webapp.runs.parents import find_parent
from webapp.runs.services import create_run


@login_required
@require_http_methods(["GET", "POST"])
def launch_run(request: ActorRequest) -> HttpResponse:
    check_can_write(request.actor)
    parent = find_parent(request.actor, request.GET.get("parent", ""))
    data = request.POST if request.method == "POST" else None
    form = LaunchForm(data, actor=request.actor, parent=parent, initial=suggest(request, parent))
    if form.is_bound and form.is_valid():
        with show_errors(form):
            return redirect("run", _create(request, form).pk)
    rates = offer_rates(find_first_model(parent))
    context = {"form": form, "parent": parent, "rates": rates, **preview(request, form)}
    return render(request, "runs/new.html", context, status=400 if form.errors else 200)


def _create(request: ActorRequest, form: LaunchForm) -> Run:
    data = form.cleaned_data
    return create_run(
        actor=request.actor,
        origin=Origin.BROWSER,
        name=data["name"],
        base_model=data["base_model"],
        dataset_version=data["dataset_version"],
        config=form.make_config(),
        parent=form.parent,
        with_optimizer=data["with_optimizer"],
    )


def find_first_model(parent: Any | None) -> BaseModel | None:
    """The one that the form is opened with."""
    return parent.base_model if parent else BaseModel.objects.order_by("added_at").first()


def suggest(request: ActorRequest, parent: Any | None) -> dict[str, Any]:
    """Defaults that follow from the model, the parent run, or a link from a dataset's page."""
    wanted = request.GET.get("dataset_version") or request.GET.get("version", "")
    rates = offer_rates(find_first_model(parent))
    learns = FULL if parent is not None and parent.is_full else LORA
    initial: dict[str, Any] = {"learning_rate": rates[learns]}
    if parent is not None:
        initial["name"] = f"{parent.run.name} from step {parent.step}"
        initial["dataset_version"] = parent.run.dataset_version_id
        initial["with_optimizer"] = parent.has_optimizer
    if wanted:
        initial["dataset_version"] = wanted
    return initial


@login_required
@require_POST
def preview_run(request: ActorRequest) -> HttpResponse:
    """Asked while the form is filled in."""
    parent = find_parent(request.actor, request.GET.get("parent", ""))
    form = LaunchForm(request.POST, actor=request.actor, parent=parent)
    return render(request, "runs/_forecast.html", {"form": form, **preview(request, form)})


def preview(request: ActorRequest, form: LaunchForm) -> dict[str, Any]:
    """Forecast and export of the values in the form; empty while they are not valid."""
    filled = form if form.is_bound else _fill(request, form)
    if not filled.is_valid():
        return {}
    return {"forecast": make_forecast(filled), "export": make_export(request, filled)}


def _fill(request: ActorRequest, form: LaunchForm) -> LaunchForm:
    """The form as it would be sent without a change."""
    values = {bound.html_name: bound.value() for bound in form}
    data = {
        name: value for name, value in values.items() if value is not None and value is not False
    }
    for name in ("dataset_version", "base_model"):
        if not data.get(name):
            first = form.fields[name].queryset.first()  # type: ignore[attr-defined]
            data[name] = first.pk if first else ""
    return LaunchForm(data, actor=request.actor, parent=form.parent)


def make_forecast(form: LaunchForm) -> Forecast:
    data = form.cleaned_data
    return forecast_run(
        version=data["dataset_version"], base_model=data["base_model"], config=form.make_config()
    )


def make_export(request: ActorRequest, form: LaunchForm) -> Export:
    data = form.cleaned_data
    return export_run(
        url=request.build_absolute_uri("/").rstrip("/"),
        name=data["name"],
        base_model=data["base_model"].name,
        version_id=data["dataset_version"].pk,
        filename=data["dataset_version"].filename,
        config=form.make_config(),
        parent_id=form.parent.pk if form.parent else "",
        with_optimizer=data["with_optimizer"],
    )
