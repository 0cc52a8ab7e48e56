"""What is going on in a project: devices, running and waiting runs, failures, first steps."""

from datetime import timedelta

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import render
from django.utils.timezone import now
from django.views.decorators.http import require_GET

from webapp.accounts.middleware import ActorRequest
from webapp.datasets.models import DatasetVersion
from webapp.fleet.workers import list_workers
from webapp.runs.models import Run

RECENT = timedelta(days=3)


@login_required
@require_GET
def show_overview(request: ActorRequest) -> HttpResponse:
    runs = Run.objects.in_project(request.actor).select_related("base_model")
    context = {
        "workers": list_workers(),
        "running": runs.filter(status__in=(Run.Status.RUNNING, Run.Status.PAUSED)),
        "queued": runs.filter(status=Run.Status.QUEUED).order_by("created_at"),
        "failed": runs.filter(status=Run.Status.FAILED, ended_at__gt=now() - RECENT),
        "has_runs": runs.exists(),
        "has_dataset": DatasetVersion.objects.in_project(request.actor)
        .filter(status=DatasetVersion.Status.READY)
        .exists(),
        "url": request.build_absolute_uri("/").rstrip("/"),
    }
    return render(request, "overview/overview.html", context)
