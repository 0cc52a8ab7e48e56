"""What is going on in a project: devices, running and waiting runs, failures, first steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib.auth.decorators import login_required
from django.db.models import QuerySet
from django.http import HttpResponse
from django.shortcuts import render
from django.utils.timezone import now
from django.views.decorators.http import require_GET

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.models import Project
from webapp.datasets.models import DatasetVersion
from webapp.fleet.capacity import Capacity, read_capacity
from webapp.fleet.workers import list_workers
from webapp.runs.findings import list_newest, read_badges
from webapp.runs.holdings import read_holdings
from webapp.runs.models import Run
from webapp.runs.progress import estimate_rests, read_loss_trends
from webapp.runs.standing import explain_waits

RECENT = timedelta(days=3)
SHOWN = 24
LATEST = 5
ENDED = (Run.Status.DONE, Run.Status.FAILED, Run.Status.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCard:
    run: Run
    trend: Sequence[float]
    eta_seconds: float | None
    wait: str


@login_required
@require_GET
def show_overview(request: ActorRequest) -> HttpResponse:
    runs = Run.objects.in_project(request.actor).select_related("base_model")
    runs = runs.prefetch_related("base_model__names")
    workers = list_workers()
    versions = DatasetVersion.objects.in_project(request.actor)
    url = request.build_absolute_uri("/").rstrip("/")
    queued = runs.filter(status=Run.Status.QUEUED).order_by("created_at")
    capacity = read_capacity(workers)
    latest = list(runs.filter(status__in=ENDED).order_by("-ended_at")[:LATEST])
    running = make_cards(runs.filter(status__in=(Run.Status.RUNNING, Run.Status.PAUSED)), capacity)
    context = {
        "holdings": read_holdings(request.actor, workers),
        "running": running,
        "badges": read_badges([*(card.run.pk for card in running), *(run.pk for run in latest)]),
        "found": list_newest(request.actor.project, LATEST),
        "queued": explain_waits(queued[:SHOWN], capacity),
        "failed": runs.filter(status=Run.Status.FAILED, ended_at__gt=now() - RECENT)[:5],
        "latest": latest,
        **read_results(request.actor.project),
        "has_runs": runs.exists(),
        "has_dataset": versions.filter(status=DatasetVersion.Status.READY).exists(),
        "sdk_lines": f"export TINKER_BASE_URL={url}\nexport TINKER_API_KEY=tml-...",
    }
    return render(request, "overview/overview.html", context)


def read_results(project: Project) -> dict[str, Any]:
    """What came of runs lately: checkpoints to keep, scores, and what is served."""
    checkpoints = project.checkpoints.filter(deleted_at=None, is_ephemeral=False)
    return {
        "checkpoints": checkpoints.select_related("run")[:LATEST],
        "evaluations": project.evaluations.select_related("suite", "checkpoint__run", "base_model")
        .defer("suite__items")
        .prefetch_related("base_model__names")[:LATEST],
        "deployments": project.deployments.exclude(status="stopped").select_related(
            "checkpoint__run"
        )[:LATEST],
    }


def make_cards(runs: QuerySet[Run], capacity: Capacity) -> list[RunCard]:
    shown = list(runs[:SHOWN])
    waits = {each.run.pk: each.wait for each in explain_waits(shown, capacity)}
    trends, rests = read_loss_trends(shown), estimate_rests(shown)
    return [
        RunCard(
            run=run,
            trend=trends.get(run.pk, []),
            eta_seconds=rests.get(run.pk),
            wait=waits[run.pk],
        )
        for run in shown
    ]
