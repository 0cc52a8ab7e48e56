"""REST: what the project takes of the disk, and its budget."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.accounts.models import Project
from webapp.accounts.services import change_disk_budget
from webapp.checkpoints.budgets import count_free_bytes, read_use


class StorageOutput(serializers.Serializer[Any]):
    used_bytes = serializers.IntegerField()
    checkpoint_bytes = serializers.IntegerField()
    num_checkpoints = serializers.IntegerField()
    export_bytes = serializers.IntegerField()
    dataset_bytes = serializers.IntegerField()
    budget_bytes = serializers.IntegerField(allow_null=True)
    free_bytes = serializers.IntegerField(help_text="Of the disk, above what is kept in reserve.")


class StorageInput(serializers.Serializer[Any]):
    budget_bytes = serializers.IntegerField(
        allow_null=True, help_text="null: as far as the disk goes."
    )


class Storage(APIView):
    """What this project takes of the disk, and its budget."""

    @extend_schema(responses=StorageOutput)
    def get(self, request: Request) -> Response:
        return Response(describe(actor_of(request).project))

    @extend_schema(request=StorageInput, responses=StorageOutput)
    def put(self, request: Request) -> Response:
        """Set the budget: owners, and operators of this installation."""
        data = StorageInput(data=request.data)
        data.is_valid(raise_exception=True)
        return Response(
            describe(change_disk_budget(actor=actor_of(request), **data.validated_data))
        )


def describe(project: Project) -> dict[str, int | None]:
    use = read_use(project)
    return {
        "used_bytes": use.total,
        "checkpoint_bytes": use.checkpoints,
        "num_checkpoints": use.num_checkpoints,
        "export_bytes": use.exports,
        "dataset_bytes": use.datasets,
        "budget_bytes": use.budget,
        "free_bytes": max(count_free_bytes(), 0),
    }
