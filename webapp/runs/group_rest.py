"""REST: sweeps, and groups of runs."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.accounts.idempotency import answer_once
from webapp.runs.group_views import find_group
from webapp.runs.models import RunGroup, RunGroupQuerySet
from webapp.runs.rest import RunInput, RunOutput, read_launch
from webapp.runs.sweeps import create_sweep, stop_group


class GroupOutput(serializers.ModelSerializer[RunGroup]):
    class Meta:
        model = RunGroup
        fields = ("id", "name", "kind", "spec", "created_at")


class GroupDetailOutput(GroupOutput):
    runs = RunOutput(many=True, read_only=True)

    class Meta(GroupOutput.Meta):
        fields = (*GroupOutput.Meta.fields, "runs")  # type: ignore[assignment]


class SweepInput(RunInput):
    grid = serializers.DictField(
        child=serializers.ListField(),
        required=False,
        help_text='Values of each setting, such as {"learning_rate": [1e-4, 3e-4]}: every'
        " combination is a run.",
    )
    settings = serializers.ListField(
        child=serializers.DictField(), required=False, help_text="Or a list of combinations."
    )


class SweepList(APIView):
    """Sweeps."""

    @extend_schema(request=SweepInput, responses={201: GroupDetailOutput})
    def post(self, request: Request) -> Response:
        """Launch one run for each combination of settings, all or none."""
        data = SweepInput(data=request.data)
        data.is_valid(raise_exception=True)
        given: dict[str, Any] = data.validated_data

        def create() -> Response:
            actor = actor_of(request)
            launch = read_launch(actor, given)
            name = launch.pop("name")
            group = create_sweep(
                actor=actor,
                name=name,
                launch=launch,
                grid=given.get("grid"),
                settings=given.get("settings"),
            )
            return Response(GroupDetailOutput(group).data, status=status.HTTP_201_CREATED)

        return answer_once(request, create)


class GroupList(ListAPIView[RunGroup]):
    """The groups of this project, newest first."""

    serializer_class = GroupOutput
    queryset = RunGroup.objects.all()

    def get_queryset(self) -> RunGroupQuerySet:
        return RunGroup.objects.visible_to(actor_of(self.request))


class GroupDetail(APIView):
    """One group with its runs."""

    @extend_schema(responses=GroupDetailOutput)
    def get(self, request: Request, group_id: str) -> Response:
        return Response(GroupDetailOutput(find_group(actor_of(request), group_id)).data)


class GroupStop(APIView):
    """Stop every run of a group; what each has learned is saved first."""

    @extend_schema(request=None, responses=GroupDetailOutput)
    def post(self, request: Request, group_id: str) -> Response:
        group = find_group(actor_of(request), group_id)
        stop_group(actor=actor_of(request), group=group)
        return Response(GroupDetailOutput(group).data)
