"""Pages of many evaluations: checkpoints by suites, and a run's scores against its steps."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from webapp.accounts.middleware import ActorRequest
from webapp.core.tables import guard_cell
from webapp.evals.answers import name_graders
from webapp.evals.matrix import read_matrix
from webapp.evals.models import EvalSuite
from webapp.evals.naming import name_subject
from webapp.evals.steps import Point, draw, list_runs, list_suites, read_points
from webapp.runs.models import Run

M = TypeVar("M", Run, EvalSuite)

STEP_HEAD = ("step", "weights", "evaluation", "score", "low", "high", "items", "digest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What is chosen: one run's points on one suite by one grader."""

    runs: Sequence[Run]
    run: Run | None
    suites: Sequence[EvalSuite]
    suite: EvalSuite | None
    graders: Sequence[str]
    grader: str
    points: Sequence[Point]


@login_required
@require_GET
def show_matrix(request: ActorRequest) -> HttpResponse:
    chosen = request.GET.get("run", "")
    matrix = read_matrix(request.actor, run=chosen, baseline=request.GET.get("baseline", ""))
    context = {"matrix": matrix, "runs": list_runs(request.actor), "run": chosen}
    return render(request, "evals/matrix.html", context)


@login_required
@require_GET
def show_steps(request: ActorRequest) -> HttpResponse:
    series = read_series(request)
    context: dict[str, Any] = {
        "series": series,
        "drawing": draw(series.points) if series.points else None,
        "rows": [(point, name_subject(point.evaluation)) for point in series.points],
    }
    return render(request, "evals/steps.html", context)


def read_series(request: ActorRequest) -> Series:
    """As the address says; what it does not say is the first there is."""
    runs = list_runs(request.actor)
    run = choose(runs, request.GET.get("run", ""))
    suites = list_suites(run) if run else []
    suite = choose(suites, request.GET.get("suite", ""))
    graders = name_graders(suite) if suite else []
    wanted = request.GET.get("grader", "")
    grader = wanted if wanted in graders else next(iter(graders), "")
    points = read_points(run, suite, grader) if run and suite else []
    return Series(
        runs=runs,
        run=run,
        suites=suites,
        suite=suite,
        graders=graders,
        grader=grader,
        points=points,
    )


def choose(rows: Sequence[M], pk: str) -> M | None:
    return next((row for row in rows if row.pk == pk), next(iter(rows), None))


@login_required
@require_GET
def download_steps(request: ActorRequest) -> HttpResponse:
    """The exact numbers of the drawing."""
    series = read_series(request)
    name = f"steps-{series.run.pk if series.run else 'none'}.csv"
    response = HttpResponse(
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )
    writer = csv.writer(response)
    writer.writerow(STEP_HEAD)
    for point in series.points:
        evaluation = point.evaluation
        writer.writerow(
            [
                *(point.step, guard_cell(name_subject(evaluation)), evaluation.pk),
                *(point.score, point.low, point.high, point.num_items),
                evaluation.served.get("digest", ""),
            ]
        )
    return response
