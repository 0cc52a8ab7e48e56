"""The launch page: the method, its form, what it would cost, and the same as a program."""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.core.forms import show_errors
from webapp.datasets.models import DatasetVersion
from webapp.fleet.models import BaseModel
from webapp.runs.export import Export, export_run
from webapp.runs.forecast import Forecast, forecast_run
from webapp.runs.forms import FULL, LORA, LaunchForm, offer_rates
from webapp.runs.methods import METHODS, Method, find_method
from webapp.runs.models import Origin
from webapp.runs.parents import find_parent
from webapp.runs.services import create_run, note_splits
from webapp.runs.sweeps import create_sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What the page is about: its address says the method and what to branch from."""

    actor: Actor
    method: Method
    parent: Any | None
    rates: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rates", self.offer(self.method))

    @classmethod
    def read(cls, request: ActorRequest) -> "Launch":
        parent = find_parent(request.actor, request.GET.get("parent", ""))
        method = request.GET.get("method") or find_usual(request, parent)
        return cls(actor=request.actor, method=find_method(method), parent=parent)

    def offer(self, method: Method) -> dict[str, float]:
        return offer_rates(self.find_first_model(), method.config)

    @property
    def learns(self) -> str:
        return FULL if self.parent is not None and self.parent.is_full else LORA

    def find_first_model(self) -> BaseModel | None:
        """The one that the form is opened with."""
        if self.parent is not None:
            model: BaseModel = self.parent.base_model
            return model
        return BaseModel.objects.order_by("added_at").first()

    def make_form(self, data: Any = None, **options: Any) -> LaunchForm:
        return self.method.form(
            data,
            actor=self.actor,
            kinds=self.method.kinds,
            usual_rate=self.method.config.find_usual_rate(),
            parent=self.parent,
            **options,
        )

    def write_query(self, method: Method) -> str:
        parent = {"parent": self.parent.pk} if self.parent is not None else {}
        return urlencode({"method": method.recipe, **parent})

    @property
    def query(self) -> str:
        return self.write_query(self.method)

    @property
    def choices(self) -> list[tuple[Method, str]]:
        """Every method, and the query of its page."""
        return [(method, self.write_query(method)) for method in METHODS.values()]


def find_usual(request: ActorRequest, parent: Any | None) -> str:
    """That of what is branched from, or the first that learns from the version in the link."""
    if parent is not None:
        return str(parent.run.recipe) if parent.run.recipe in METHODS else "sft"
    version_id = find_wanted(request.GET)
    versions = DatasetVersion.objects.in_project(request.actor).filter(pk=version_id)
    kind = versions.values_list("kind", flat=True).first() if version_id else None
    fitting = (method.recipe for method in METHODS.values() if kind in method.kinds)
    return next(fitting, "sft")


def find_wanted(query: QueryDict) -> str:
    """The dataset version that a link names."""
    return query.get("dataset_version") or query.get("version", "")


@login_required
@require_http_methods(["GET", "POST"])
def launch_run(request: ActorRequest) -> HttpResponse:
    check_can_write(request.actor)
    launch = Launch.read(request)
    if "switched_from" in request.POST:
        return show_launch(request, launch, launch.make_form(initial=keep(request, launch)))
    data = request.POST if request.method == "POST" else None
    form = launch.make_form(data, initial=suggest(request.GET, launch))
    if form.is_bound and form.is_valid():
        with show_errors(form):
            return redirect(_create(launch, form))
    return show_launch(request, launch, form)


def show_launch(request: ActorRequest, launch: Launch, form: LaunchForm) -> HttpResponse:
    context = {
        "form": form,
        "launch": launch,
        "choices": launch.choices,
        **preview(request, launch, form),
    }
    return render(request, "runs/new.html", context, status=400 if form.errors else 200)


def _create(launch: Launch, form: LaunchForm) -> str:
    """A run, or the group of a sweep's; where its page is."""
    data = form.cleaned_data
    given = {
        "origin": Origin.BROWSER,
        "base_model": data["base_model"],
        "dataset_version": form.version,
        "config": form.make_config(),
        "parent": launch.parent,
        "with_optimizer": data["with_optimizer"],
        "recipe": launch.method.recipe,
    }
    actor, name = launch.actor, data["name"]
    if data["sweep"]:
        group = create_sweep(actor=actor, name=name, launch=given, grid=data["sweep"])
        return reverse("run-group", args=[group.pk])
    return reverse("run", args=[create_run(actor=actor, name=name, **given).pk])


def suggest(query: QueryDict, launch: Launch) -> dict[str, Any]:
    """Defaults that follow from the model, the parent run, or a link from a dataset's page."""
    initial: dict[str, Any] = {"learning_rate": launch.rates[launch.learns]}
    if (parent := launch.parent) is not None:
        initial["name"] = f"{parent.run.name} from step {parent.step}"
        initial["dataset_version"] = parent.run.dataset_version_id
        initial["with_optimizer"] = parent.has_optimizer and parent.run.recipe in (
            "",
            launch.method.recipe,
        )
    if wanted := find_wanted(query):
        initial["dataset_version"] = wanted
    return initial


def keep(request: ActorRequest, launch: Launch) -> dict[str, Any]:
    """What was filled in for another method, as far as this one asks for the same.

    The learning rate follows the method unless somebody has set their own.
    """
    initial = suggest(request.GET, launch)
    before = launch.offer(find_method(request.POST["switched_from"]))
    usual = {str(rate) for rate in before.values()}
    for name, asked in launch.make_form().fields.items():
        if isinstance(asked, forms.BooleanField):
            if name != "with_optimizer" and "base_model" in request.POST:
                initial[name] = name in request.POST
        elif name in request.POST and not (name == "learning_rate" and request.POST[name] in usual):
            initial[name] = request.POST[name]
    return initial


@login_required
@require_POST
def preview_run(request: ActorRequest) -> HttpResponse:
    """Asked while the form is filled in."""
    launch = Launch.read(request)
    form = launch.make_form(request.POST)
    context = {"form": form, **preview(request, launch, form)}
    return render(request, "runs/_forecast.html", context)


def preview(request: ActorRequest, launch: Launch, form: LaunchForm) -> dict[str, Any]:
    """Forecast and export of the values in the form; empty while they are not valid."""
    filled = form if form.is_bound else _fill(launch, form)
    if not filled.is_valid():
        return {}
    return {
        "forecast": make_forecast(launch, filled),
        "export": make_export(request, launch, filled),
    }


def _fill(launch: Launch, form: LaunchForm) -> LaunchForm:
    """The form as it would be sent without a change."""
    values = {bound.html_name: bound.value() for bound in form}
    data = {
        name: value for name, value in values.items() if value is not None and value is not False
    }
    for name in ("dataset_version", "base_model"):
        if name in form.fields and not data.get(name):
            first = form.fields[name].queryset.first()  # type: ignore[attr-defined]
            data[name] = first.pk if first else ""
    return launch.make_form(data)


def make_forecast(launch: Launch, form: LaunchForm) -> Forecast:
    return forecast_run(
        version=form.version,
        base_model=form.cleaned_data["base_model"],
        config=form.make_config(),
        recipe=launch.method.recipe,
    )


def make_export(request: ActorRequest, launch: Launch, form: LaunchForm) -> Export:
    data = form.cleaned_data
    return export_run(
        url=request.build_absolute_uri("/").rstrip("/"),
        name=data["name"],
        base_model=data["base_model"],
        version=form.version,
        config=note_splits(form.make_config(), form.version),
        recipe=launch.method.recipe,
        parent=launch.parent,
        with_optimizer=data["with_optimizer"],
        grid=data["sweep"],
    )
