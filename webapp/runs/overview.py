"""What is going on in a project: devices, running and waiting runs, failures, first steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from django.contrib.auth.decorators import login_required
from django.db.models import QuerySet
from django.http import HttpResponse
from django.shortcuts import render
from django.utils.timezone import now
from django.views.decorators.http import require_GET

from webapp.accounts.middleware import ActorRequest
from webapp.datasets.models import DatasetVersion
from webapp.fleet.models import Worker
from webapp.fleet.workers import WorkerState, list_workers
from webapp.runs.models import Run
from webapp.runs.progress import estimate_rest, read_loss_trends

RECENT = timedelta(days=3)
SHOWN = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCard:
    run: Run
    trend: Sequence[float]
    eta_seconds: float | None


@login_required
@require_GET
def show_overview(request: ActorRequest) -> HttpResponse:
    runs = Run.objects.in_project(request.actor).select_related("base_model")
    runs = runs.prefetch_related("base_model__names")
    workers = list_workers()
    versions = DatasetVersion.objects.in_project(request.actor)
    url = request.build_absolute_uri("/").rstrip("/")
    context = {
        "workers": workers,
        "running": make_cards(runs.filter(status__in=(Run.Status.RUNNING, Run.Status.PAUSED))),
        "queued": runs.filter(status=Run.Status.QUEUED).order_by("created_at")[:SHOWN],
        "queue_reason": explain_queue(workers),
        "failed": runs.filter(status=Run.Status.FAILED, ended_at__gt=now() - RECENT)[:5],
        "has_runs": runs.exists(),
        "has_dataset": versions.filter(status=DatasetVersion.Status.READY).exists(),
        "sdk_lines": f"export TINKER_BASE_URL={url}\nexport TINKER_API_KEY=tml-...",
    }
    return render(request, "overview/overview.html", context)


def make_cards(runs: QuerySet[Run]) -> list[RunCard]:
    shown = list(runs[:SHOWN])
    trends = read_loss_trends(shown)
    return [
        RunCard(run=run, trend=trends.get(run.pk, []), eta_seconds=estimate_rest(run))
        for run in shown
    ]


def explain_queue(workers: Sequence[WorkerState]) -> str:
    kinds = {worker.kind for worker in workers if worker.state == "alive"}
    if Worker.Kind.GPU not in kinds:
        return "no worker that trains is alive"
    return "its turn comes when the runs before it leave room"
