"""Pages of groups of runs: a sweep's runs, or a pipeline's stages, on one page."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import Count
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_POST

from webapp.accounts.middleware import ActorRequest
from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.core.errors import NotFound
from webapp.core.streams import StreamedResponse, stream_csv
from webapp.core.tables import guard_cell
from webapp.runs.group_table import make_bands, read_curve, read_table
from webapp.runs.history import split_drawn
from webapp.runs.models import Metric, RunGroup
from webapp.runs.sweeps import stop_group

MOST_GROUPS = 200


def find_group(actor: Actor, group_id: str) -> RunGroup:
    group = RunGroup.objects.visible_to(actor).filter(pk=group_id).first()
    if group is None:
        raise NotFound(f"There is no group {group_id}.")
    return group


@login_required
@require_GET
def show_groups(request: ActorRequest) -> HttpResponse:
    rows = RunGroup.objects.in_project(request.actor).select_related("created_by")
    groups = rows.annotate(num_runs=Count("runs"))[:MOST_GROUPS]
    return render(request, "runs/groups.html", {"groups": groups})


@login_required
@require_GET
def show_group(request: ActorRequest, group_id: str) -> HttpResponse:
    group = find_group(request.actor, group_id)
    table = read_table(group, request.GET.get("metric", ""))
    is_live = any(not row.run.is_over for row in table.rows)
    context = {"group": group, "table": table, "is_live": is_live}
    return render(request, "runs/group.html", context)


@login_required
@require_GET
def read_group_points(request: ActorRequest, group_id: str) -> JsonResponse:
    """One metric of all its runs, thinned, and the mean of those that differ by seed alone."""
    group = find_group(request.actor, group_id)
    runs = list(group.runs.order_by("created_at", "pk"))
    key = request.GET.get("metric", "")
    split = {run.pk: split_drawn(read_curve(run, key)) for run in runs}
    curves = {pk: drawn for pk, (drawn, _) in split.items()}
    lines = [
        {
            "run": run.pk,
            "name": run.name.removeprefix(f"{group.name}: "),
            "place": place,
            "steps": [point.step for point in curves[run.pk]],
            "values": [point.value for point in curves[run.pk]],
        }
        for place, run in enumerate(runs)
    ]
    bands = [asdict(band) for band in make_bands(runs, curves)]
    num_left_out = sum(left_out for _, left_out in split.values())
    answer = {"metric": key, "lines": lines, "bands": bands, "left_out": num_left_out}
    return JsonResponse(answer)


@login_required
@require_GET
def download_group(request: ActorRequest, group_id: str) -> StreamedResponse:
    """Every point of every run, none thinned."""
    group = find_group(request.actor, group_id)
    rows = Metric.objects.filter(run__group=group).order_by("run__created_at", "key", "step")
    values = rows.values_list("run", "run__name", "key", "step", "value", "at")

    def lines() -> Iterator[list[Any]]:
        yield ["run", "name", "key", "step", "value", "at"]
        for run_id, name, key, step, value, at in values.iterator():
            yield [run_id, guard_cell(name), key, step, value, at.isoformat()]

    return stream_csv(lines(), f"{group.pk}.csv")


@login_required
@require_POST
def stop_runs(request: ActorRequest, group_id: str) -> HttpResponse:
    group = find_group(request.actor, group_id)
    check_can_write(request.actor, project_id=group.project_id)
    num_stopped = stop_group(actor=request.actor, group=group)
    messages.success(request, f"{num_stopped} runs end; what they learned is saved.")
    return redirect("run-group", group.pk)
