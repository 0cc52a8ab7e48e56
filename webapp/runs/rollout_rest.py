"""REST: what a run has sampled to learn from, and what it was worth."""

from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.core.paging import CreatedCursorPagination
from webapp.runs.records import Rollout
from webapp.runs.rest import find_run
from webapp.runs.rollout_pages import FILTERS, RolloutQuery


class RolloutOutput(serializers.ModelSerializer[Rollout]):
    class Meta:
        model = Rollout
        fields = (
            "id", "step", "group", "index", "row", "prompt", "completion", "tokens",
            "stop_reason", "reward", "rewards", "advantage", "is_dropped", "checkpoint", "digest",
        )  # fmt: skip


class RolloutPagination(CreatedCursorPagination):
    """The newest step first; within a step by group."""

    ordering = ("-step", "group", "index")
    page_size = 64


class RunRollouts(APIView):
    """What a run has sampled to learn from."""

    @extend_schema(
        parameters=[
            OpenApiParameter("step", OpenApiTypes.INT, description="Of this step only."),
            OpenApiParameter("only", OpenApiTypes.STR, enum=list(FILTERS)),
            OpenApiParameter("q", OpenApiTypes.STR, description="A text that answers contain."),
            OpenApiParameter("cursor", OpenApiTypes.STR),
            OpenApiParameter("page_size", OpenApiTypes.INT),
        ],
        responses=RolloutOutput(many=True),
    )
    def get(self, request: Request, run_id: str) -> Response:
        """Of all steps, the newest first. Answers of old steps have their text and no tokens."""
        run = find_run(request, run_id)
        query = RolloutQuery.read({key: str(value) for key, value in request.query_params.items()})
        rows = query.choose(run, query.step) if query.step is not None else self._all(run, query)
        pages = RolloutPagination()
        page = pages.paginate_queryset(rows, request, view=self)
        return pages.get_paginated_response(RolloutOutput(page, many=True).data)

    def _all(self, run: Any, query: RolloutQuery) -> Any:
        return RolloutQuery(text=query.text, only=query.only, is_everywhere=True).choose(run, None)
