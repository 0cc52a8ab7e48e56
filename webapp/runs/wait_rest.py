"""REST: what the runs of a project wait for, and how much is ahead of them."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.fleet.capacity import read_capacity
from webapp.runs.models import Run
from webapp.runs.rest import find_run
from webapp.runs.standing import Standing, explain_waits

SHOWN = 200
LIVE = (Run.Status.QUEUED, Run.Status.RUNNING)


class WaitOutput(serializers.Serializer[Standing]):
    run = serializers.CharField(source="run.pk")
    reason = serializers.CharField(
        source="wait", help_text="Empty: it is worked on, or nobody has asked it for anything."
    )
    is_stopped = serializers.BooleanField(
        help_text="Nothing of it goes on: it waits for more than its turn."
    )
    operations_ahead = serializers.IntegerField(
        source="ahead.num_operations", help_text="About, as turns are fair by tokens."
    )
    tokens_ahead = serializers.IntegerField(source="ahead.num_tokens", help_text="About.")


class RunWait(APIView):
    """Why a run does not go on at this moment."""

    @extend_schema(responses=WaitOutput)
    def get(self, request: Request, run_id: str) -> Response:
        (standing,) = explain_waits([find_run(request, run_id)], read_capacity())
        return Response(WaitOutput(standing).data)


class WaitingRuns(APIView):
    """The runs of this project that do not go on at this moment, and why."""

    @extend_schema(responses=WaitOutput(many=True))
    def get(self, request: Request) -> Response:
        runs = Run.objects.visible_to(actor_of(request)).filter(status__in=LIVE)
        standings = explain_waits(runs[:SHOWN], read_capacity())
        waiting: Any = [each for each in standings if each.wait]
        return Response(WaitOutput(waiting, many=True).data)
