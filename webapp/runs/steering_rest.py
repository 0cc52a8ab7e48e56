"""REST: what else steers a run that learns."""

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.runs import steering
from webapp.runs.models import Run
from webapp.runs.rest import RunAction, RunOutput, find_run


class RunStopAfterSave(RunAction):
    """Go on to the next checkpoint of the run's cadence, and stop there."""

    act = staticmethod(steering.request_stop_after_save)


class KlCoefficientInput(serializers.Serializer[Run]):
    kl_coefficient = serializers.FloatField(min_value=0)


class RunKlCoefficient(APIView):
    """What a running recipe's distance to its reference costs."""

    @extend_schema(request=KlCoefficientInput, responses=RunOutput)
    def post(self, request: Request, run_id: str) -> Response:
        """Change it from the next step on."""
        run = find_run(request, run_id)
        data = KlCoefficientInput(data=request.data)
        data.is_valid(raise_exception=True)
        steering.change_kl_coefficient(
            actor=actor_of(request), run=run, kl_coefficient=data.validated_data["kl_coefficient"]
        )
        run.refresh_from_db()
        return Response(RunOutput(run).data)
