"""The settings page of sampling servers: which engine answers, and how each of them is."""

import csv
from collections.abc import Sequence

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from webapp.accounts.middleware import ActorRequest
from webapp.deployments.models import Replica, SamplingCall
from webapp.deployments.queries import describe_engines, list_replicas_for
from webapp.deployments.standing import list_lines
from webapp.deployments.traffic import Traffic, read_traffic
from webapp.deployments.views import find_deployment


@login_required
@require_GET
def show_replicas(request: ActorRequest) -> HttpResponse:
    replicas = list(list_replicas_for(request.actor))
    context = {
        "tab": "serving",
        "lines": list_lines(replicas),
        "engines": describe_engines(replicas),
        "serving": settings.SERVING,
        "is_asleep": is_asleep(replicas),
        "external": settings.SAMPLING_SERVER_URL,
        "traffic": read_traffic(SamplingCall.objects.with_traffic_for(request.actor)),
    }
    return render(request, "deployments/replicas.html", context)


def is_asleep(replicas: Sequence[Replica]) -> bool:
    """Nobody wants one: a built-in server always runs, vLLM where it is asked for."""
    is_stopped = all(each.status == Replica.Status.STOPPED for each in replicas)
    return is_stopped and settings.SERVING == Replica.Engine.VLLM


@login_required
@require_GET
def save_traffic(request: ActorRequest, deployment_id: str) -> HttpResponse:
    deployment = find_deployment(request.actor, deployment_id)
    calls = SamplingCall.objects.filter(deployment=deployment)
    return write_csv(read_traffic(calls), f"{deployment.pk}-traffic.csv")


@login_required
@require_GET
def save_all_traffic(request: ActorRequest) -> HttpResponse:
    calls = SamplingCall.objects.with_traffic_for(request.actor)
    return write_csv(read_traffic(calls), "traffic.csv")


def write_csv(traffic: Traffic, filename: str) -> HttpResponse:
    """What the bars of the chart show."""
    answer = HttpResponse(
        content_type="text/csv",
        headers={"Content-Disposition": f'attachment; filename="{filename}"'},
    )
    writer = csv.writer(answer)
    writer.writerow(["begin", "tokens_per_second"])
    writer.writerows([bar.begin.isoformat(), bar.rate] for bar in traffic.bars)
    return answer
