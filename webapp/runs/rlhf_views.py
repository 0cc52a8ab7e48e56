"""The launch page of reinforcement learning from human feedback."""

import json
from typing import Any
from urllib.parse import urlencode

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.permissions import check_can_write
from webapp.core.curl import JSON, KEY
from webapp.core.errors import UserError
from webapp.runs.forecast import forecast_run
from webapp.runs.methods import METHODS
from webapp.runs.models import Origin
from webapp.runs.rlhf import STAGES, create_rlhf
from webapp.runs.rlhf_forms import RlhfForm


@login_required
@require_http_methods(["GET", "POST"])
def launch_rlhf(request: ActorRequest) -> HttpResponse:
    check_can_write(request.actor)
    form = RlhfForm(request.POST if request.method == "POST" else None, actor=request.actor)
    if form.is_bound and form.is_valid():
        try:
            group = create_rlhf(
                actor=request.actor,
                origin=Origin.BROWSER,
                name=form.cleaned_data["name"],
                base_model=form.cleaned_data["base_model"],
                stages=form.make_stages(),
            )
            return redirect("run-group", group.pk)
        except UserError as error:
            field = error.field.replace(".", "_")
            form.add_error(field if field in form.fields else None, error.message)
    choices = [(method, urlencode({"method": recipe})) for recipe, method in METHODS.items()]
    context = {"form": form, "choices": choices, **preview(request, form)}
    return render(request, "runs/rlhf.html", context, status=400 if form.errors else 200)


@login_required
@require_POST
def preview_rlhf(request: ActorRequest) -> HttpResponse:
    """Asked while the form is filled in."""
    form = RlhfForm(request.POST, actor=request.actor)
    context = {"form": form, **preview(request, form)}
    return render(request, "runs/_rlhf_forecast.html", context)


def preview(request: ActorRequest, form: RlhfForm) -> dict[str, Any]:
    """Of each stage what it would take, and the REST call; empty while the form is not valid."""
    filled = form if form.is_bound else fill(request, form)
    if not filled.is_valid():
        return {}
    stages = filled.make_stages()
    forecasts = [
        (METHODS[recipe].label, forecast_stage(filled, recipe, stages[recipe])) for recipe in STAGES
    ]
    known = [found.estimate for _, found in forecasts if found.estimate]
    return {
        "forecasts": forecasts,
        "seconds": sum(each.seconds for each in known) if len(known) == len(STAGES) else None,
        "problems": [found.need.problem for _, found in forecasts if found.need],
        "curl": write_curl(request, filled, stages),
    }


def forecast_stage(form: RlhfForm, recipe: str, stage: dict[str, Any]) -> Any:
    return forecast_run(
        version=stage["dataset_version"],
        base_model=form.cleaned_data["base_model"],
        config=complete(recipe, stage["config"]),
        recipe=recipe,
    )


def complete(recipe: str, config: dict[str, Any]) -> dict[str, Any]:
    """As the run will have it: the judge is not there yet."""
    judge = [{"name": "preference", "checkpoint": "run"}]
    return {**config, "graders": judge} if recipe == "rl" else config


def fill(request: ActorRequest, form: RlhfForm) -> RlhfForm:
    """The form as it would be sent without a change."""
    data = {bound.html_name: bound.value() for bound in form}
    for name in ("base_model", *(f"{recipe}_dataset_version" for recipe in STAGES)):
        first = form.fields[name].queryset.first()  # type: ignore[attr-defined]
        data[name] = first.pk if first else ""
    return RlhfForm(
        {name: value for name, value in data.items() if value is not None}, actor=request.actor
    )


def write_curl(request: HttpRequest, form: RlhfForm, stages: dict[str, dict[str, Any]]) -> str:
    body = {
        "name": form.cleaned_data["name"],
        "base_model": form.cleaned_data["base_model"].name,
        **{
            recipe: {**stage, "dataset_version": stage["dataset_version"].pk}
            for recipe, stage in stages.items()
        },
    }
    written = json.dumps(body, indent=2, ensure_ascii=False).replace("'", "'\\''")
    url = request.build_absolute_uri("/rest/rlhf")
    return f"curl {url} \\\n  {KEY} \\\n  {JSON} \\\n  -d '{written}'"
