"""REST: checkpoints."""

from typing import ClassVar

from django.http import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.checkpoints.downloads import stream_archive
from webapp.checkpoints.models import Checkpoint, CheckpointQuerySet
from webapp.checkpoints.services import delete_checkpoint, keep_checkpoint
from webapp.core.errors import NotFound


class CheckpointOutput(serializers.ModelSerializer[Checkpoint]):
    tinker_path = serializers.CharField(read_only=True)
    parent = serializers.CharField(  # type: ignore[assignment]
        source="run.parent_id", read_only=True, allow_null=True
    )

    class Meta:
        model = Checkpoint
        fields = (
            "id",
            "run",
            "parent",
            "base_model",
            "name",
            "kind",
            "step",
            "digest",
            "size_bytes",
            "rank",
            "type",
            "previous",
            "ratio",
            "has_optimizer",
            "is_encrypted",
            "is_ephemeral",
            "is_pinned",
            "tinker_path",
            "created_at",
            "expires_at",
        )
        extra_kwargs: ClassVar = {
            "rank": {"help_text": "Of its adapter; 0: all weights."},
            "type": {"help_text": "adapter; base: a whole model; delta: what differs from one."},
            "previous": {"help_text": "The checkpoint that a delta is the difference to."},
            "ratio": {"help_text": "A delta's bytes to those of all weights."},
        }


def find_checkpoint(request: Request, checkpoint_id: str) -> Checkpoint:
    rows = Checkpoint.objects.visible_to(actor_of(request)).alive()
    found = rows.select_related("run", "base_model").filter(pk=checkpoint_id).first()
    if found is None:
        raise NotFound(f"There is no checkpoint {checkpoint_id}.")
    return found


@extend_schema(parameters=[OpenApiParameter("run", str, description="Of this run only.")])
class CheckpointList(ListAPIView[Checkpoint]):
    """The checkpoints of this project; those made for samples alone are left out."""

    serializer_class = CheckpointOutput
    queryset = Checkpoint.objects.all()

    def get_queryset(self) -> CheckpointQuerySet:
        rows = Checkpoint.objects.visible_to(actor_of(self.request)).alive()
        rows = rows.filter(is_ephemeral=False).select_related("run")
        run = self.request.query_params.get("run")
        return rows.filter(run=run) if run else rows


class CheckpointDetail(APIView):
    """One checkpoint."""

    @extend_schema(responses=CheckpointOutput)
    def get(self, request: Request, checkpoint_id: str) -> Response:
        return Response(CheckpointOutput(find_checkpoint(request, checkpoint_id)).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, checkpoint_id: str) -> Response:
        """Delete its files; the row stays, for lineage."""
        checkpoint = find_checkpoint(request, checkpoint_id)
        delete_checkpoint(actor=actor_of(request), checkpoint=checkpoint)
        return Response(status=status.HTTP_204_NO_CONTENT)


class CheckpointKeep(APIView):
    """Whether a checkpoint expires."""

    @extend_schema(request=None, responses=CheckpointOutput)
    def post(self, request: Request, checkpoint_id: str) -> Response:
        """Keep it until it is deleted by hand."""
        checkpoint = find_checkpoint(request, checkpoint_id)
        keep_checkpoint(actor=actor_of(request), checkpoint=checkpoint)
        checkpoint.refresh_from_db()
        return Response(CheckpointOutput(checkpoint).data)


class CheckpointDownload(APIView):
    """A checkpoint's folder: an adapter in PEFT format, or a whole model."""

    @extend_schema(responses={(200, "application/x-tar"): OpenApiTypes.BINARY})
    def get(self, request: Request, checkpoint_id: str) -> HttpResponseBase:
        return stream_archive(find_checkpoint(request, checkpoint_id))
