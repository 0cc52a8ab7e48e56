"""REST: deployments, and asking what is served."""

from typing import Any

import orjson
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.accounts.idempotency import answer_once
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.rest import find_checkpoint
from webapp.core.errors import NotFound
from webapp.deployments.calls import cancel_call
from webapp.deployments.models import (
    Deployment,
    DeploymentQuerySet,
    HotLoad,
    SamplingCall,
    SamplingCallQuerySet,
)
from webapp.deployments.services import ask, change_checkpoint, create_deployment, stop_deployment
from webapp.fleet.models import BaseModel
from webapp.fleet.services import find_base_model


class HotLoadOutput(serializers.ModelSerializer[HotLoad]):
    class Meta:
        model = HotLoad
        fields = (
            "adapter_name",
            "checkpoint",
            "status",
            "digest",
            "load_milliseconds",
            "probe_milliseconds",
            "max_difference",
            "tolerance",
            "error",
            "created_at",
        )


class DeploymentOutput(serializers.ModelSerializer[Deployment]):
    hot_loads = serializers.SerializerMethodField()

    class Meta:
        model = Deployment
        fields = (
            "id",
            "name",
            "base_model",
            "checkpoint",
            "status",
            "error",
            "hot_loads",
            "created_at",
            "changed_at",
        )

    def get_hot_loads(self, deployment: Deployment) -> list[dict[str, Any]]:
        """The newest ten."""
        return [dict(HotLoadOutput(each).data) for each in deployment.hot_loads.all()[:10]]


class DeploymentInput(serializers.Serializer[Deployment]):
    name = serializers.CharField(max_length=80)
    base_model = serializers.CharField(required=False, help_text="A name, to serve it as it is.")
    checkpoint = serializers.CharField(required=False, help_text="An id.")


class DeploymentChange(serializers.Serializer[Deployment]):
    checkpoint = serializers.CharField(
        allow_null=True, help_text="An id; null: the base model as it is."
    )


def find_deployment(actor: Actor, deployment_id: str) -> Deployment:
    rows = Deployment.objects.visible_to(actor).select_related("base_model", "checkpoint")
    found = rows.filter(pk=deployment_id).first()
    if found is None:
        raise NotFound(f"There is no deployment {deployment_id}.")
    return found


def find_target(request: Request, data: dict[str, Any]) -> dict[str, Any]:
    """The base model or checkpoint that a request names, as keyword arguments of a service."""
    target: dict[str, BaseModel | Checkpoint] = {}
    if data.get("base_model"):
        target["base_model"] = find_base_model(data["base_model"])
    if data.get("checkpoint"):
        target["checkpoint"] = find_checkpoint(request, data["checkpoint"])
    return target


class DeploymentList(ListAPIView[Deployment]):
    """The deployments of this project."""

    serializer_class = DeploymentOutput
    queryset = Deployment.objects.all()

    def get_queryset(self) -> DeploymentQuerySet:
        rows = Deployment.objects.visible_to(actor_of(self.request))
        return rows.prefetch_related("hot_loads")

    @extend_schema(request=DeploymentInput, responses={201: DeploymentOutput})
    def post(self, request: Request) -> Response:
        """Serve a checkpoint, or a base model as it is."""
        data = DeploymentInput(data=request.data)
        data.is_valid(raise_exception=True)

        def create() -> Response:
            deployment = create_deployment(
                actor=actor_of(request),
                name=data.validated_data["name"],
                **find_target(request, data.validated_data),
            )
            return Response(DeploymentOutput(deployment).data, status=status.HTTP_201_CREATED)

        return answer_once(request, create)


class DeploymentDetail(APIView):
    """One deployment with its loads and their proofs."""

    @extend_schema(responses=DeploymentOutput)
    def get(self, request: Request, deployment_id: str) -> Response:
        return Response(DeploymentOutput(find_deployment(actor_of(request), deployment_id)).data)

    @extend_schema(request=DeploymentChange, responses=DeploymentOutput)
    def patch(self, request: Request, deployment_id: str) -> Response:
        """Serve other weights of the same base model."""
        deployment = find_deployment(actor_of(request), deployment_id)
        data = DeploymentChange(data=request.data)
        data.is_valid(raise_exception=True)
        checkpoint = data.validated_data["checkpoint"]
        change_checkpoint(
            actor=actor_of(request),
            deployment=deployment,
            checkpoint=find_checkpoint(request, checkpoint) if checkpoint else None,
        )
        return Response(DeploymentOutput(deployment).data)

    @extend_schema(responses=DeploymentOutput)
    def delete(self, request: Request, deployment_id: str) -> Response:
        """Stop it. Its loads and their proofs stay readable."""
        deployment = find_deployment(actor_of(request), deployment_id)
        stop_deployment(actor=actor_of(request), deployment=deployment)
        return Response(DeploymentOutput(deployment).data)


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
