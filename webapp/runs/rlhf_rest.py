"""REST: reinforcement learning from human feedback, all three stages at once."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.accounts.idempotency import answer_once
from webapp.fleet.services import find_base_model
from webapp.runs.group_rest import GroupDetailOutput
from webapp.runs.models import Origin, RunGroup
from webapp.runs.rest import find_version
from webapp.runs.rlhf import STAGES, create_rlhf


class StageInput(serializers.Serializer[Any]):
    dataset_version = serializers.CharField(help_text="An id; of the kind that the stage takes.")
    config = serializers.DictField(
        required=False, default=dict, help_text="As of a run with this recipe."
    )


class RlhfInput(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=120, required=False, allow_blank=True, default="")
    base_model = serializers.CharField(help_text="Any of its names.")
    sft = StageInput(help_text="Learns from conversations; the policy begins with its weights.")
    reward_model = StageInput(help_text="Learns from preference pairs, beginning with the model.")
    rl = StageInput(help_text="Answers prompts; its answers are compared by the reward model.")


class RlhfList(APIView):
    """Reinforcement learning from human feedback."""

    @extend_schema(request=RlhfInput, responses={201: GroupDetailOutput})
    def post(self, request: Request) -> Response:
        """Launch a group of three runs: each begins when the one before it is done."""
        data = RlhfInput(data=request.data)
        data.is_valid(raise_exception=True)

        def create() -> Response:
            group = _create(request, data.validated_data)
            return Response(GroupDetailOutput(group).data, status=status.HTTP_201_CREATED)

        return answer_once(request, create)


def _create(request: Request, data: dict[str, Any]) -> RunGroup:
    actor = actor_of(request)
    return create_rlhf(
        actor=actor,
        origin=Origin.REST,
        name=data["name"],
        base_model=find_base_model(data["base_model"]),
        stages={
            recipe: {
                "dataset_version": find_version(actor, data[recipe]["dataset_version"]),
                "config": data[recipe]["config"],
            }
            for recipe in STAGES
        },
    )
