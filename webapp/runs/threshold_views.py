"""The settings page of the diagnostics: from where on each of them speaks."""

from collections.abc import Mapping
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.models import Role
from webapp.core.forms import show_errors
from webapp.runs.thresholds import (
    THRESHOLDS,
    THRESHOLDS_BY_KEY,
    Threshold,
    check_owner,
    read_values,
    reset_thresholds,
    set_thresholds,
)


def make_field(threshold: Threshold) -> forms.FloatField:
    """That a whole number is one is the service's to say."""
    field = forms.FloatField(
        label=threshold.meaning,
        required=False,  # empty: the default
        min_value=threshold.low,
        max_value=threshold.high,
        help_text=f"Default {threshold.default:g}.",
    )
    field.widget.attrs["step"] = 1 if threshold.is_whole else "any"
    return field


class ThresholdForm(forms.Form):
    """One number each; an empty one is the default."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields.update({each.key: make_field(each) for each in THRESHOLDS})


def write_plainly(values: Mapping[str, float]) -> dict[str, float]:
    """8 and not 8.0."""
    return {key: int(value) if value == int(value) else value for key, value in values.items()}


@login_required
@require_http_methods(["GET", "POST"])
def show_thresholds(request: ActorRequest) -> HttpResponse:
    values = read_values(request.actor.project.pk)
    form = ThresholdForm(request.POST or None, initial=write_plainly(values))
    if request.method == "POST":
        check_owner(request.actor)
        if "reset" in request.POST:
            return _reset(request, request.POST["reset"])
        with show_errors(form):
            if form.is_valid():
                set_thresholds(actor=request.actor, values=form.cleaned_data)
                messages.success(request, SAVED)
                return redirect("settings-diagnostics")
    context = {
        "tab": "diagnostics",
        "form": form,
        "rows": [_describe(each, form, values) for each in THRESHOLDS],
        "is_owner": request.actor.role == Role.OWNER,
        "is_default": all(values[each.key] == each.default for each in THRESHOLDS),
    }
    return render(request, "runs/thresholds.html", context, status=400 if form.errors else 200)


SAVED = "Saved: runs of the last day are looked at again within a minute."


def _reset(request: ActorRequest, key: str) -> HttpResponse:
    """One of them, or all."""
    if key in THRESHOLDS_BY_KEY:
        set_thresholds(actor=request.actor, values={key: None})
    else:
        reset_thresholds(actor=request.actor)
    messages.success(request, SAVED)
    return redirect("settings-diagnostics")


def _describe(
    threshold: Threshold, form: ThresholdForm, values: Mapping[str, float]
) -> dict[str, Any]:
    value = values[threshold.key]
    return {
        "threshold": threshold,
        "field": form[threshold.key],
        "value": f"{value:g}",
        "default": f"{threshold.default:g}",
        "is_own": value != threshold.default,
    }
