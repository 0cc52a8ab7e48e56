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
from webapp.fleet.isolation import start_isolation_test
from webapp.fleet.models import BaseModel, IsolationTest
from webapp.fleet.services import add_base_model, remove_base_model
from webapp.fleet.workers import MEMORY_PARTS, list_places, list_workers

SHOWN_TESTS = 10


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
    workers = list_workers()
    tests = IsolationTest.objects.for_pages()[:SHOWN_TESTS]
    context = {
        "tab": "workers",
        "workers": workers,
        "memory_parts": MEMORY_PARTS.values() if any(each.memory for each in workers) else (),
        "places": list_places(workers),
        "tests": tests,
        "is_testing": any(not test.is_over for test in tests),
        "projects": Project.objects.with_share_for(request.actor),
        "may_change": may_administer(request.actor),
    }
    return render(request, "fleet/workers.html", context)


@login_required
@require_POST
def test_isolation(request: ActorRequest) -> HttpResponse:
    worker, _, base_model = request.POST.get("place", "").partition(" ")
    start_isolation_test(actor=request.actor, worker=worker, base_model=base_model)
    messages.success(request, "The isolation test runs between two passes of the worker.")
    return redirect("settings-workers")
