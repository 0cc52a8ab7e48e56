"""Settings pages of base models and workers."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.models import Project
from webapp.accounts.permissions import check_may_administer, may_administer
from webapp.core.forms import show_errors
from webapp.fleet.forms import BaseModelForm
from webapp.fleet.models import BaseModel
from webapp.fleet.services import add_base_model, remove_base_model
from webapp.fleet.workers import list_workers


@login_required
@require_http_methods(["GET", "POST"])
def list_models(request: ActorRequest) -> HttpResponse:
    form = BaseModelForm(request.POST or None)
    if request.method == "POST":
        check_may_administer(request.actor)
    if request.method == "POST" and form.is_valid():
        with show_errors(form):
            base_model = add_base_model(**form.cleaned_data)
            messages.success(request, f"{base_model} is offered now.")
            return redirect("settings-models")
    context = {
        "tab": "models",
        "form": form,
        "base_models": BaseModel.objects.prefetch_related("names"),
        "may_change": may_administer(request.actor),
    }
    return render(request, "fleet/models.html", context, status=400 if form.errors else 200)


@login_required
@require_POST
def remove_model(request: ActorRequest) -> HttpResponse:
    check_may_administer(request.actor)
    remove_base_model(name=request.POST.get("name", ""))
    messages.success(request, "The base model is no longer offered.")
    return redirect("settings-models")


@login_required
@require_GET
def show_workers(request: ActorRequest) -> HttpResponse:
    context = {
        "tab": "workers",
        "workers": list_workers(),
        "projects": Project.objects.with_share_for(request.actor),
        "may_change": may_administer(request.actor),
    }
    return render(request, "fleet/workers.html", context)
