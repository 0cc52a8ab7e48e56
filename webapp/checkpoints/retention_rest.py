"""REST of retention: the rule, what it would delete, its application; acts on many checkpoints."""

from collections.abc import Mapping
from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.checkpoints.bulk import ACTIONS, act_on_many
from webapp.checkpoints.models import RetentionRule
from webapp.checkpoints.rest import CheckpointOutput, find_checkpoint
from webapp.checkpoints.retention_plans import Plan, make_plan
from webapp.checkpoints.retention_rules import Keep
from webapp.checkpoints.retention_services import apply_rule, drop_rule, find_rule, save_rule
from webapp.checkpoints.services import set_pinned
from webapp.core.counts import read_count
from webapp.core.errors import NotFound

ITEMS_A_PAGE = 500


class KeepInput(serializers.Serializer[Any]):
    best = serializers.IntegerField(required=False, help_text="Of the project, by `suite`.")
    suite = serializers.CharField(required=False, help_text="An evaluation suite's id.")
    last = serializers.IntegerField(required=False, help_text="Of each run and kind.")
    every = serializers.IntegerField(required=False, help_text="Steps that this divides.")
    days = serializers.IntegerField(required=False, help_text="Younger than so many days.")


class RuleInput(serializers.Serializer[RetentionRule]):
    keep = KeepInput()
    is_active = serializers.BooleanField(default=False, help_text="Applied by itself.")


class RuleOutput(RuleInput):
    changed_at = serializers.DateTimeField()
    applied_at = serializers.DateTimeField(allow_null=True)


class ItemOutput(serializers.Serializer[Any]):
    checkpoint = serializers.CharField()
    name = serializers.CharField()
    run = serializers.CharField()
    step = serializers.IntegerField()
    size_bytes = serializers.IntegerField()
    reasons = serializers.ListField(
        child=serializers.CharField(), help_text="Why it stays; empty: it goes."
    )


class PlanOutput(serializers.Serializer[Any]):
    text = serializers.CharField()
    num_checkpoints = serializers.IntegerField()
    num_deleted = serializers.IntegerField()
    freed_bytes = serializers.IntegerField()
    items = ItemOutput(many=True)
    next_offset = serializers.IntegerField(allow_null=True)


class AppliedOutput(serializers.Serializer[Any]):
    num_deleted = serializers.IntegerField()
    freed_bytes = serializers.IntegerField()


class ActInput(serializers.Serializer[Any]):
    ids = serializers.ListField(child=serializers.CharField(max_length=80), max_length=1000)
    action = serializers.ChoiceField(choices=list(ACTIONS))


class RefusedOutput(serializers.Serializer[Any]):
    checkpoint = serializers.CharField()
    message = serializers.CharField()


class ActOutput(serializers.Serializer[Any]):
    done = serializers.ListField(child=serializers.CharField())
    size_bytes = serializers.IntegerField()
    refused = RefusedOutput(many=True)


class Retention(APIView):
    """Which checkpoints of this project stay."""

    @extend_schema(responses=RuleOutput)
    def get(self, request: Request) -> Response:
        return Response(RuleOutput(require_rule(request)).data)

    @extend_schema(request=RuleInput, responses=RuleOutput)
    def put(self, request: Request) -> Response:
        """Save the rule. An active one is applied every minute from now on."""
        data = RuleInput(data=request.data)
        data.is_valid(raise_exception=True)
        return Response(RuleOutput(save_rule(actor=actor_of(request), **data.validated_data)).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request) -> Response:
        """Drop the rule; checkpoints stay until they expire."""
        drop_rule(actor=actor_of(request))
        return Response(status=status.HTTP_204_NO_CONTENT)


def require_rule(request: Request) -> RetentionRule:
    rule = find_rule(actor_of(request).project.pk)
    if rule is None:
        raise NotFound("This project has no retention rule.")
    return rule


OFFSET = OpenApiParameter("offset", int, description="Of the first item; next_offset is the next.")


class RetentionPlan(APIView):
    """What a rule would delete now, and why each other checkpoint stays."""

    @extend_schema(parameters=[OFFSET], responses=PlanOutput)
    def get(self, request: Request) -> Response:
        """Of the rule that is saved."""
        return Response(write_plan(request, Keep.read(require_rule(request).keep)))

    @extend_schema(parameters=[OFFSET], request=KeepInput, responses=PlanOutput)
    def post(self, request: Request) -> Response:
        """Of a rule that is not: nothing is saved or deleted."""
        data = KeepInput(data=request.data)
        data.is_valid(raise_exception=True)
        return Response(write_plan(request, Keep.read(data.validated_data)))


def write_plan(request: Request, keep: Keep) -> Mapping[str, Any]:
    plan = make_plan(actor_of(request).project.pk, keep)
    offset = read_offset(request)
    items = plan.items[offset : offset + ITEMS_A_PAGE]
    following = offset + ITEMS_A_PAGE
    return {
        "text": plan.describe(),
        "num_checkpoints": len(plan.items),
        "num_deleted": len(plan.doomed),
        "freed_bytes": plan.freed_bytes,
        "items": [write_item(plan, place + offset) for place in range(len(items))],
        "next_offset": following if following < len(plan.items) else None,
    }


def read_offset(request: Request) -> int:
    return read_count(request.query_params.get("offset", "0"), "offset")


def write_item(plan: Plan, place: int) -> Mapping[str, Any]:
    item = plan.items[place]
    return {
        "checkpoint": item.checkpoint.pk,
        "name": item.checkpoint.name,
        "run": item.checkpoint.run_id,
        "step": item.checkpoint.step,
        "size_bytes": item.size_bytes,
        "reasons": list(item.reasons),
    }


class RetentionApplication(APIView):
    """The rule, applied now."""

    @extend_schema(request=None, responses=AppliedOutput)
    def post(self, request: Request) -> Response:
        """Delete what it does not keep, as things are at this moment."""
        applied = apply_rule(actor=actor_of(request))
        told = {"num_deleted": applied.num_deleted, "freed_bytes": applied.freed_bytes}
        return Response(told)


class ManyCheckpoints(APIView):
    """The same for many checkpoints."""

    @extend_schema(request=ActInput, responses=ActOutput)
    def post(self, request: Request) -> Response:
        """Delete, pin, unpin or keep them; each is done or says why not."""
        data = ActInput(data=request.data)
        data.is_valid(raise_exception=True)
        outcome = act_on_many(actor=actor_of(request), **data.validated_data)
        refused = [{"checkpoint": each.pk, "message": why} for each, why in outcome.refused]
        refused += [{"checkpoint": each, "message": "There is none."} for each in outcome.missing]
        told = {"done": [each.pk for each in outcome.done], "size_bytes": outcome.size_bytes}
        return Response({**told, "refused": refused})


class CheckpointPin(APIView):
    """Whether retention rules may delete a checkpoint."""

    @extend_schema(request=None, responses=CheckpointOutput)
    def put(self, request: Request, checkpoint_id: str) -> Response:
        """Pin it: no rule deletes it, and it does not expire."""
        return self._set(request, checkpoint_id, is_pinned=True)

    @extend_schema(responses=CheckpointOutput)
    def delete(self, request: Request, checkpoint_id: str) -> Response:
        return self._set(request, checkpoint_id, is_pinned=False)

    def _set(self, request: Request, checkpoint_id: str, *, is_pinned: bool) -> Response:
        checkpoint = find_checkpoint(request, checkpoint_id)
        set_pinned(actor=actor_of(request), checkpoint=checkpoint, is_pinned=is_pinned)
        return Response(CheckpointOutput(checkpoint).data)
