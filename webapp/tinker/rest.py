"""REST: which calls of which SDK work here."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.tinker.conformance import find_reports


class ConformanceCallOutput(serializers.Serializer[Any]):
    group = serializers.CharField()
    call = serializers.CharField()
    status = serializers.CharField(help_text="supported, refused, or unavailable in this version.")
    sentence = serializers.CharField(help_text="Why it is refused.")
    note = serializers.CharField()


class ConformanceOutput(serializers.Serializer[Any]):
    sdk_version = serializers.CharField()
    python = serializers.CharField()
    ran_at = serializers.DateTimeField()
    offered = serializers.IntegerField(help_text="Calls that this version of the SDK has.")
    supported = serializers.IntegerField()
    refused = serializers.IntegerField()
    calls = ConformanceCallOutput(many=True)


class Conformance(APIView):
    """What the conformance suite found, one entry an SDK version, the newest first."""

    @extend_schema(responses=ConformanceOutput(many=True))
    def get(self, request: Request) -> Response:  # noqa: ARG002 - DRF's
        return Response(ConformanceOutput(find_reports(), many=True).data)
