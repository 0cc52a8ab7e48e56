"""REST of exports: asked for, read, downloaded, deleted."""

from typing import ClassVar

from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.checkpoints.downloads import stream_export
from webapp.checkpoints.exports import delete_export, find_export, request_export
from webapp.checkpoints.models import Export
from webapp.checkpoints.rest import find_checkpoint


class ExportOutput(serializers.ModelSerializer[Export]):
    class Meta:
        model = Export
        fields = (
            "id",
            "checkpoint",
            "kind",
            "precision",
            "status",
            "digest",
            "size_bytes",
            "max_difference",
            "mean_difference",
            "error",
            "created_at",
            "ended_at",
        )
        extra_kwargs: ClassVar = {
            "max_difference": {
                "help_text": "In nats, on the checkpoint's probe: the folder, loaded again, against"
                " the trainer."
            },
        }


class ExportInput(serializers.Serializer[None]):
    kind = serializers.ChoiceField(choices=Export.Kind.choices)
    precision = serializers.ChoiceField(
        choices=Export.Precision.choices, default=Export.Precision.SOURCE
    )


class ExportList(APIView):
    """Folders that were made of a checkpoint for other programs."""

    @extend_schema(responses=ExportOutput(many=True))
    def get(self, request: Request, checkpoint_id: str) -> Response:
        exports = find_checkpoint(request, checkpoint_id).exports.all()
        return Response(ExportOutput(exports, many=True).data)

    @extend_schema(request=ExportInput, responses={202: ExportOutput})
    def post(self, request: Request, checkpoint_id: str) -> Response:
        """Make one: an adapter in PEFT's format, or a merged model. It is loaded again and compared
        before it is ready; the same again is the one that there is."""
        data = ExportInput(data=request.data)
        data.is_valid(raise_exception=True)
        checkpoint = find_checkpoint(request, checkpoint_id)
        export = request_export(
            actor=actor_of(request), checkpoint=checkpoint, **data.validated_data
        )
        return Response(ExportOutput(export).data, status=status.HTTP_202_ACCEPTED)


class ExportDetail(APIView):
    """One export."""

    @extend_schema(responses=ExportOutput)
    def get(self, request: Request, export_id: str) -> Response:
        return Response(ExportOutput(find_export(actor_of(request), export_id)).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, export_id: str) -> Response:
        """Delete it and its files; the checkpoint stays."""
        actor = actor_of(request)
        delete_export(actor=actor, export=find_export(actor, export_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


class ExportDownload(APIView):
    """An export's folder, as a tar."""

    @extend_schema(responses={(200, "application/x-tar"): OpenApiTypes.BINARY})
    def get(self, request: Request, export_id: str) -> HttpResponseBase:
        return stream_export(find_export(actor_of(request), export_id))
