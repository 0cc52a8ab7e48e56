"""REST: asking what is served."""

from typing import Any

import orjson
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.accounts.idempotency import answer_once
from webapp.core.errors import NotFound
from webapp.deployments.calls import cancel_call
from webapp.deployments.models import SamplingCall, SamplingCallQuerySet
from webapp.deployments.rest import find_deployment, find_target
from webapp.deployments.services import ask


class MessageInput(serializers.Serializer[Any]):
    role = serializers.CharField()
    content = serializers.CharField(trim_whitespace=False)


class CallInput(serializers.Serializer[SamplingCall]):
    deployment = serializers.CharField(required=False)
    checkpoint = serializers.CharField(required=False)
    base_model = serializers.CharField(required=False)
    messages = MessageInput(many=True)
    params = serializers.DictField(
        required=False, help_text="max_tokens, temperature, top_k, top_p, seed, stop, num_samples"
    )


class CallOutput(serializers.ModelSerializer[SamplingCall]):
    result = serializers.SerializerMethodField()

    class Meta:
        model = SamplingCall
        fields = ("id", "status", "result", "error", "created_at", "finished_at")

    def get_result(self, call: SamplingCall) -> dict[str, Any] | None:
        return orjson.loads(bytes(call.result)) if call.result is not None else None


class CallList(APIView):
    """Questions to what is served."""

    @extend_schema(request=CallInput, responses={202: CallOutput})
    def post(self, request: Request) -> Response:
        """Ask a deployment, a checkpoint or a base model; read the answer by the call's id."""
        data = CallInput(data=request.data)
        data.is_valid(raise_exception=True)
        fields = data.validated_data

        def create() -> Response:
            actor = actor_of(request)
            target = find_target(request, fields)
            if fields.get("deployment"):
                target = {"deployment": find_deployment(actor, fields["deployment"])}
            call = ask(
                actor=actor,
                messages=fields["messages"],
                params=fields.get("params"),
                purpose=SamplingCall.Purpose.REST,
                **target,
            )
            return Response(CallOutput(call).data, status=status.HTTP_202_ACCEPTED)

        return answer_once(request, create)


class CallDetail(APIView):
    """One question and, once it is there, its answer."""

    @extend_schema(responses=CallOutput)
    def get(self, request: Request, call_id: int) -> Response:
        calls = SamplingCall.objects.visible_to(actor_of(request))
        return Response(CallOutput(_find_call(calls, call_id)).data)

    @extend_schema(responses=CallOutput)
    def delete(self, request: Request, call_id: int) -> Response:
        """Cancel it, where it has not ended."""
        calls = SamplingCall.objects.visible_to(actor_of(request))
        call = _find_call(calls, call_id)
        cancel_call(call)
        call.refresh_from_db()
        return Response(CallOutput(call).data)


def _find_call(calls: SamplingCallQuerySet, call_id: int) -> SamplingCall:
    # A Tinker client's result is protobuf, and read by its own protocol.
    call = calls.exclude(purpose=SamplingCall.Purpose.TINKER).filter(pk=call_id).first()
    if call is None:
        raise NotFound(f"There is no call {call_id}.")
    return call
