"""REST: what happened at which step of a run."""

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.runs.annotations import list_annotations
from webapp.runs.records import Annotation
from webapp.runs.rest import find_run


class AnnotationOutput(serializers.ModelSerializer[Annotation]):
    user = serializers.CharField(
        source="user.username", default="", help_text="Who did it; empty: the server itself."
    )

    class Meta:
        model = Annotation
        fields = ("id", "step", "kind", "text", "user", "at")


class RunAnnotations(APIView):
    """What happened at which step: somebody steered, something was found, an evaluation ended."""

    @extend_schema(responses=AnnotationOutput(many=True))
    def get(self, request: Request, run_id: str) -> Response:
        """The newest 200, in the order of steps."""
        found = list_annotations(find_run(request, run_id))
        return Response(AnnotationOutput(found, many=True).data)
