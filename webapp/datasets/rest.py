"""REST: datasets, their versions and previews."""

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.generics import ListAPIView
from rest_framework.parsers import FormParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.accounts.idempotency import answer_once
from webapp.core.errors import NotFound
from webapp.datasets.models import DatasetVersion, DatasetVersionQuerySet, Preview
from webapp.datasets.services import (
    choose_kind,
    create_version,
    decide,
    delete_version,
    request_preview,
)
from webapp.fleet.services import find_base_model


class VersionOutput(serializers.ModelSerializer[DatasetVersion]):
    dataset_name = serializers.CharField(source="dataset.name", read_only=True)

    class Meta:
        model = DatasetVersion
        fields = (
            "id",
            "dataset",
            "dataset_name",
            "number",
            "status",
            "filename",
            "format",
            "kind",
            "derived_from",
            "derivation",
            "split",
            "num_splits",
            "size_bytes",
            "digest",
            "num_rows",
            "num_bad",
            "report",
            "error",
            "created_at",
        )


class VersionInput(serializers.Serializer[DatasetVersion]):
    name = serializers.CharField(max_length=120, help_text="The dataset; made where it is new.")
    file = serializers.FileField(help_text="JSONL, CSV or Parquet, up to 2 GiB.")
    kind = serializers.ChoiceField(
        choices=DatasetVersion.Kind.choices,
        required=False,
        help_text="What a row is; where it is absent the columns say it.",
    )


class DecisionInput(serializers.Serializer[DatasetVersion]):
    keep_valid = serializers.BooleanField(required=False)
    kind = serializers.ChoiceField(choices=DatasetVersion.Kind.choices, required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs:
            raise serializers.ValidationError(
                "Say keep_valid, or the kind where report.kinds names several."
            )
        return attrs


class PreviewOutput(serializers.ModelSerializer[Preview]):
    is_ready = serializers.SerializerMethodField()

    class Meta:
        model = Preview
        fields = ("is_ready", "rows", "stats", "error")

    def get_is_ready(self, preview: Preview) -> bool:
        return preview.rows is not None


def find_version(request: Request, version_id: str) -> DatasetVersion:
    version = (
        DatasetVersion.objects.visible_to(actor_of(request))
        .select_related("dataset")
        .filter(pk=version_id)
        .first()
    )
    if version is None:
        raise NotFound(f"There is no dataset version {version_id}.")
    return version


class VersionList(ListAPIView[DatasetVersion]):
    """The dataset versions of this project."""

    serializer_class = VersionOutput
    parser_classes = (MultiPartParser, FormParser)
    queryset = DatasetVersion.objects.all()

    def get_queryset(self) -> DatasetVersionQuerySet:
        return DatasetVersion.objects.visible_to(actor_of(self.request)).select_related("dataset")

    @extend_schema(request=VersionInput, responses={202: VersionOutput})
    def post(self, request: Request) -> Response:
        """Upload a file as the next version of a dataset; it is validated in the background."""
        data = VersionInput(data=request.data)
        data.is_valid(raise_exception=True)

        def create() -> Response:
            version = create_version(
                actor=actor_of(request),
                name=data.validated_data["name"],
                upload=data.validated_data["file"],
                kind=data.validated_data.get("kind", ""),
            )
            return Response(VersionOutput(version).data, status=status.HTTP_202_ACCEPTED)

        return answer_once(request, create)


class VersionDetail(APIView):
    """One version with its validation report."""

    @extend_schema(responses=VersionOutput)
    def get(self, request: Request, version_id: str) -> Response:
        return Response(VersionOutput(find_version(request, version_id)).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, version_id: str) -> Response:
        """Delete its rows and files; refused while runs or suites were made of it."""
        delete_version(actor=actor_of(request), version=find_version(request, version_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


class VersionDecision(APIView):
    """What to do with a version some of whose lines are bad."""

    @extend_schema(request=DecisionInput, responses=VersionOutput)
    def post(self, request: Request, version_id: str) -> Response:
        """Say what its rows are, keep the valid ones, or discard the version."""
        version = find_version(request, version_id)
        data = DecisionInput(data=request.data)
        data.is_valid(raise_exception=True)
        decision = {"actor": actor_of(request), "version": version, **data.validated_data}
        if "kind" in data.validated_data:
            decision.pop("keep_valid", None)
            choose_kind(**decision)
        else:
            decide(**decision)
        version.refresh_from_db()
        return Response(VersionOutput(version).data)


class VersionPreview(APIView):
    """A version's first rows as tokens of a base model, with the loss mask."""

    @extend_schema(
        parameters=[OpenApiParameter("base_model", str, required=True)], responses=PreviewOutput
    )
    def get(self, request: Request, version_id: str) -> Response:
        """Ask again while `is_ready` is false: a worker is making it."""
        version = find_version(request, version_id)
        name: Any = request.query_params.get("base_model", "")
        preview = request_preview(version=version, base_model=find_base_model(name))
        return Response(PreviewOutput(preview).data)
