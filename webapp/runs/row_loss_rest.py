"""REST: what each row of the dataset cost a run."""

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.core.errors import UserError
from webapp.runs.data_tab import WHICH, choose
from webapp.runs.rest import find_run
from webapp.runs.row_losses import read_trajectories

ROWS_A_PAGE = 1000


class RowLossOutput(serializers.Serializer[Any]):
    row = serializers.IntegerField(help_text="Its number in the dataset version.")
    steps = serializers.ListField(child=serializers.IntegerField())
    losses = serializers.ListField(child=serializers.FloatField())


class RunRowLosses(APIView):
    """Trajectories of rows: the mean loss of each at every step that learned from it."""

    @extend_schema(
        parameters=[
            OpenApiParameter("rows", str, enum=WHICH, description="all where it is absent."),
            OpenApiParameter("after", int, description="Rows behind this number."),
        ],
        responses=RowLossOutput(many=True),
    )
    def get(self, request: Request, run_id: str) -> Response:
        """Up to a thousand at once, by their numbers; ask on with `after`."""
        run = find_run(request, run_id)
        which, after = (
            request.query_params.get("rows", "all"),
            request.query_params.get("after", "0"),
        )
        if which not in WHICH:
            raise UserError(f"rows is one of {', '.join(WHICH)}.", field="rows")
        if not after.isdecimal() or len(after) > 10:
            raise UserError("after is a row's number.", field="after")
        kept = [each for each in choose(read_trajectories(run), which) if each.row > int(after)]
        return Response(RowLossOutput(kept[:ROWS_A_PAGE], many=True).data)
