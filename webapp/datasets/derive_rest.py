"""REST: versions made of versions, questions about their rows, and their rows as files."""

from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.accounts.idempotency import answer_once
from webapp.core.streams import StreamedResponse
from webapp.datasets.analyses import request_analysis
from webapp.datasets.deriving import derive_versions
from webapp.datasets.exports import export_version
from webapp.datasets.imports import start_import
from webapp.datasets.models import DatasetVersion
from webapp.datasets.records import Analysis
from webapp.datasets.rest import VersionOutput, find_version


class SplitInput(serializers.Serializer[DatasetVersion]):
    held_out_share = serializers.FloatField()
    seed = serializers.IntegerField(default=0)
    by_prompt = serializers.BooleanField(
        default=False, help_text="Rows with the same prompt fall on one side."
    )


class DeriveInput(serializers.Serializer[DatasetVersion]):
    filters = serializers.ListField(
        child=serializers.DictField(),
        required=False,
        help_text=(
            'In order: {"filter": "length", "unit": "characters" | "tokens" | "messages", "least",'
            ' "most", "base_model"}, {"filter": "contains", "pattern", "where", "ignore_case",'
            ' "drop"}, {"filter": "role", "role", "drop"}, {"filter": "metadata", "column",'
            ' "value", "drop"}, {"filter": "duplicates"}, {"filter": "near_duplicates",'
            ' "threshold"}, {"filter": "losses", "run", "which": "never_learnt" | "rose"}.'
        ),
    )
    split = SplitInput(required=False)
    name = serializers.CharField(max_length=120, required=False, help_text="Of the dataset.")


class AnalysisInput(serializers.Serializer[Analysis]):
    kind = serializers.ChoiceField(choices=Analysis.Kind.choices)
    options: Any = serializers.DictField(required=False)


class AnalysisOutput(serializers.ModelSerializer[Analysis]):
    is_ready = serializers.SerializerMethodField()

    class Meta:
        model = Analysis
        fields = ("kind", "options", "is_ready", "result", "error", "created_at")

    def get_is_ready(self, analysis: Analysis) -> bool:
        return not analysis.is_waiting


class ImportInput(serializers.Serializer[DatasetVersion]):
    name = serializers.CharField(max_length=120, help_text="The dataset; made where it is new.")
    path = serializers.CharField(
        required=False, help_text="In the folder that HONE_IMPORT_DIR names; for operators."
    )
    repository = serializers.CharField(required=False, help_text="A dataset of the Hub.")
    file = serializers.CharField(required=False, help_text="Of the Hub's dataset.")
    revision = serializers.CharField(required=False, help_text="main where it is absent.")
    kind = serializers.ChoiceField(choices=DatasetVersion.Kind.choices, required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("path" in attrs) == ("repository" in attrs):
            raise serializers.ValidationError("Give a path, or a repository of the Hub.")
        return attrs


class VersionImport(APIView):
    """Files that nobody uploads."""

    @extend_schema(request=ImportInput, responses={202: VersionOutput})
    def post(self, request: Request) -> Response:
        """Import a file of this machine or of the Hub as the next version of a dataset."""
        data = ImportInput(data=request.data)
        data.is_valid(raise_exception=True)

        def create() -> Response:
            version = start_import(actor_of(request), data.validated_data)
            return Response(VersionOutput(version).data, status=status.HTTP_202_ACCEPTED)

        return answer_once(request, create)


class VersionDerived(APIView):
    """Versions made of this one."""

    @extend_schema(responses=VersionOutput(many=True))
    def get(self, request: Request, version_id: str) -> Response:
        rows = find_version(request, version_id).derived.select_related("dataset")
        return Response(VersionOutput(rows.order_by("created_at")[:200], many=True).data)

    @extend_schema(request=DeriveInput, responses={202: VersionOutput(many=True)})
    def post(self, request: Request, version_id: str) -> Response:
        """One version of the rows that pass, or with `split` two: train and held_out."""
        version = find_version(request, version_id)
        data = DeriveInput(data=request.data)
        data.is_valid(raise_exception=True)
        wanted: dict[str, Any] = dict(data.validated_data)

        def create() -> Response:
            made = derive_versions(
                actor=actor_of(request),
                version=version,
                filters=wanted.get("filters", []),
                split=wanted.get("split"),
                name=wanted.get("name", ""),
            )
            body = VersionOutput(made, many=True).data
            return Response(body, status=status.HTTP_202_ACCEPTED)

        return answer_once(request, create)


class VersionAnalyses(APIView):
    """Questions about a version's rows: filters, near_duplicates, leakage, tokens, difference."""

    @extend_schema(request=AnalysisInput, responses=AnalysisOutput)
    def post(self, request: Request, version_id: str) -> Response:
        """Ask again while `is_ready` is false: a worker is at it, and answers once."""
        version = find_version(request, version_id)
        data = AnalysisInput(data=request.data)
        data.is_valid(raise_exception=True)
        analysis = request_analysis(
            actor=actor_of(request),
            version=version,
            kind=data.validated_data["kind"],
            options=data.validated_data.get("options", {}),
        )
        return Response(AnalysisOutput(analysis).data)


class VersionRows(APIView):
    """A version's rows as a file."""

    @extend_schema(responses={(200, "application/octet-stream"): OpenApiTypes.BINARY})
    def get(self, request: Request, version_id: str, ending: str) -> StreamedResponse:
        """`ending`: jsonl, csv or parquet."""
        return export_version(find_version(request, version_id), ending)
