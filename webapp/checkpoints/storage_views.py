"""The page of the project's storage: what takes how much, and the budget."""

from django import forms
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.permissions import may_set_budget
from webapp.accounts.services import change_disk_budget
from webapp.checkpoints.budgets import Use, count_free_bytes, list_largest_runs, read_use
from webapp.core.forms import show_errors
from webapp.core.templatetags.hone import count, percent, size

GIB = 2**30


class BudgetForm(forms.Form):
    budget = forms.FloatField(
        label="Budget",
        required=False,
        min_value=0,
        max_value=2**30,
        help_text="In GiB; empty: as far as the disk goes. A save that would exceed it is refused"
        " before anything is written.",
    )


@login_required
@require_http_methods(["GET", "POST"])
def show_storage(request: ActorRequest) -> HttpResponse:
    project = request.actor.project
    use = read_use(project)
    initial = {"budget": use.budget / GIB if use.budget is not None else None}
    form = BudgetForm(request.POST or None, initial=initial)
    if request.method == "POST" and form.is_valid():
        given = form.cleaned_data["budget"]
        num_bytes = None if given is None else round(given * GIB)
        with show_errors(form):
            change_disk_budget(actor=request.actor, budget_bytes=num_bytes)
            messages.success(request, "The budget is saved.")
            return redirect("settings-storage")
    context = {
        "tab": "storage",
        "form": form,
        "use": use,
        "stats": describe_use(use),
        "runs": list_largest_runs(project),
        "may_set": may_set_budget(request.actor),
    }
    status = 400 if form.errors else 200
    return render(request, "checkpoints/storage.html", context, status=status)


def describe_use(use: Use) -> list[tuple[str, str, str]]:
    budget = "no budget" if use.budget is None else f"of {size(use.budget)}"
    share = "" if use.share is None else f", {percent(use.share)}"
    free, reserve = size(max(count_free_bytes(), 0)), size(settings.DISK_RESERVE_BYTES)
    return [
        ("Used", size(use.total), budget + share),
        ("Checkpoints", size(use.checkpoints), f"{count(use.num_checkpoints)} of them"),
        ("Exports", size(use.exports), "made of checkpoints"),
        ("Datasets", size(use.datasets), "as they were uploaded"),
        ("Free on the disk", free, f"above {reserve} in reserve"),
    ]
