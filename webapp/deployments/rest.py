"""REST: deployments, what they serve, and the servers that hold it."""

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_field
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
from webapp.deployments.models import (
    Deployment,
    DeploymentChange,
    DeploymentQuerySet,
    HotLoad,
    Replica,
)
from webapp.deployments.queries import (
    list_replicas_for,
    list_replicas_of,
    name_engine,
    with_pending,
)
from webapp.deployments.replicas import scale_deployment
from webapp.deployments.services import (
    change_checkpoint,
    create_deployment,
    roll_back,
    stop_deployment,
)
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
            "server",
            "export_milliseconds",
            "transfer_milliseconds",
            "load_milliseconds",
            "probe_milliseconds",
            "pause_milliseconds",
            "mean_difference",
            "max_difference",
            "tolerance",
            "error",
            "created_at",
        )


class ChangeOutput(serializers.ModelSerializer[DeploymentChange]):
    user = serializers.CharField(source="user.username", default=None, read_only=True)
    hot_load = HotLoadOutput(read_only=True, allow_null=True)

    class Meta:
        model = DeploymentChange
        fields = (
            "id",
            "checkpoint",
            "previous",
            "transition",
            "identity",
            "status",
            "error",
            "user",
            "pause_milliseconds",
            "hot_load",
            "created_at",
            "ended_at",
        )


class ReplicaOutput(serializers.ModelSerializer[Replica]):
    engine_name = serializers.SerializerMethodField(help_text="With its version.")

    class Meta:
        model = Replica
        fields = (
            "name",
            "engine",
            "engine_name",
            "version",
            "status",
            "error",
            "base_model",
            "deployment",
            "stats",
            "stats_at",
            "started_at",
            "ready_at",
            "used_at",
        )

    def get_engine_name(self, replica: Replica) -> str:
        return name_engine(replica)


class DeploymentOutput(serializers.ModelSerializer[Deployment]):
    pending_change = serializers.SerializerMethodField()
    hot_loads = serializers.SerializerMethodField()

    class Meta:
        model = Deployment
        fields = (
            "id",
            "name",
            "base_model",
            "checkpoint",
            "num_replicas",
            "status",
            "error",
            "pending_change",
            "hot_loads",
            "created_at",
            "changed_at",
        )

    @extend_schema_field(ChangeOutput(allow_null=True))
    def get_pending_change(self, deployment: Deployment) -> dict[str, Any] | None:
        """What is being loaded and proven; what was served before answers until then."""
        pending_id = getattr(deployment, "pending_id", None)
        changes = DeploymentChange.objects.select_related("user", "hot_load")
        change = changes.filter(pk=pending_id).first() if pending_id else None
        return dict(ChangeOutput(change).data) if change else None

    @extend_schema_field(HotLoadOutput(many=True))
    def get_hot_loads(self, deployment: Deployment) -> list[dict[str, Any]]:
        """The newest ten."""
        return [dict(HotLoadOutput(each).data) for each in deployment.hot_loads.all()[:10]]


class DeploymentInput(serializers.Serializer[Deployment]):
    name = serializers.CharField(max_length=80)
    base_model = serializers.CharField(required=False, help_text="A name, to serve it as it is.")
    checkpoint = serializers.CharField(required=False, help_text="An id.")
    num_replicas = serializers.IntegerField(
        default=1, help_text="Servers that hold it; 0: none until somebody asks."
    )


class PromotionInput(serializers.Serializer[Deployment]):
    checkpoint = serializers.CharField(
        allow_null=True, help_text="An id; null: the base model as it is."
    )
    transition = serializers.ChoiceField(
        DeploymentChange.Transition.choices,
        default="",
        help_text="Of answers under way: async, they may go on with the new weights; sync, they"
        " end on the old ones first; empty: whatever makes no pause.",
    )


class ScaleInput(serializers.Serializer[Deployment]):
    num_replicas = serializers.IntegerField(help_text="0: none until somebody asks.")


def find_deployment(actor: Actor, deployment_id: str) -> Deployment:
    rows = Deployment.objects.visible_to(actor).select_related("base_model", "checkpoint")
    found = with_pending(rows).filter(pk=deployment_id).first()
    if found is None:
        raise NotFound(f"There is no deployment {deployment_id}.")
    return found


def tell(request: Request, deployment_id: str, code: int = status.HTTP_200_OK) -> Response:
    """How it stands now."""
    deployment = find_deployment(actor_of(request), deployment_id)
    return Response(DeploymentOutput(deployment).data, status=code)


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
        return with_pending(rows).prefetch_related("hot_loads")

    @extend_schema(request=DeploymentInput, responses={201: DeploymentOutput})
    def post(self, request: Request) -> Response:
        """Serve a checkpoint, or a base model as it is."""
        data = DeploymentInput(data=request.data)
        data.is_valid(raise_exception=True)

        def create() -> Response:
            deployment = create_deployment(
                actor=actor_of(request),
                name=data.validated_data["name"],
                num_replicas=data.validated_data["num_replicas"],
                **find_target(request, data.validated_data),
            )
            return tell(request, deployment.pk, status.HTTP_201_CREATED)

        return answer_once(request, create)


class DeploymentDetail(APIView):
    """One deployment with its loads and their proofs."""

    @extend_schema(responses=DeploymentOutput)
    def get(self, request: Request, deployment_id: str) -> Response:
        return tell(request, deployment_id)

    @extend_schema(request=PromotionInput, responses=DeploymentOutput)
    def patch(self, request: Request, deployment_id: str) -> Response:
        """Serve other weights of the same base model, as `promote` does."""
        deployment = find_deployment(actor_of(request), deployment_id)
        promote(request, deployment)
        return tell(request, deployment_id)

    @extend_schema(responses=DeploymentOutput)
    def delete(self, request: Request, deployment_id: str) -> Response:
        """Stop it. Its loads and their proofs stay readable."""
        deployment = find_deployment(actor_of(request), deployment_id)
        stop_deployment(actor=actor_of(request), deployment=deployment)
        return tell(request, deployment_id)


def promote(request: Request, deployment: Deployment) -> DeploymentChange:
    data = PromotionInput(data=request.data)
    data.is_valid(raise_exception=True)
    checkpoint = data.validated_data["checkpoint"]
    return change_checkpoint(
        actor=actor_of(request),
        deployment=deployment,
        checkpoint=find_checkpoint(request, checkpoint) if checkpoint else None,
        transition=data.validated_data["transition"],
    )


class DeploymentPromotion(APIView):
    """Other weights for a deployment."""

    @extend_schema(request=PromotionInput, responses={202: ChangeOutput})
    def post(self, request: Request, deployment_id: str) -> Response:
        """Ask for other weights. The old ones answer until these are loaded and proven."""
        deployment = find_deployment(actor_of(request), deployment_id)

        def change() -> Response:
            made = promote(request, deployment)
            return Response(ChangeOutput(made).data, status=status.HTTP_202_ACCEPTED)

        return answer_once(request, change)


class DeploymentRollback(APIView):
    """The way back."""

    @extend_schema(request=None, responses={202: ChangeOutput})
    def post(self, request: Request, deployment_id: str) -> Response:
        """Serve again what was served before."""
        deployment = find_deployment(actor_of(request), deployment_id)

        def change() -> Response:
            made = roll_back(actor=actor_of(request), deployment=deployment)
            return Response(ChangeOutput(made).data, status=status.HTTP_202_ACCEPTED)

        return answer_once(request, change)


class DeploymentScale(APIView):
    """How many servers hold a deployment."""

    @extend_schema(request=ScaleInput, responses=DeploymentOutput)
    def post(self, request: Request, deployment_id: str) -> Response:
        """0 lets it sleep until somebody asks: the first answer then waits for a start."""
        deployment = find_deployment(actor_of(request), deployment_id)
        data = ScaleInput(data=request.data)
        data.is_valid(raise_exception=True)
        scale_deployment(actor=actor_of(request), deployment=deployment, **data.validated_data)
        return tell(request, deployment_id)


class DeploymentHistory(ListAPIView[DeploymentChange]):
    """What it was asked to serve, newest first, and what became of it."""

    serializer_class = ChangeOutput
    queryset = DeploymentChange.objects.all()

    def get_queryset(self) -> QuerySet[DeploymentChange]:
        deployment = find_deployment(actor_of(self.request), self.kwargs["deployment_id"])
        return deployment.changes.select_related("user", "hot_load")


class DeploymentReplicas(APIView):
    """The servers that answer for a deployment."""

    @extend_schema(responses=ReplicaOutput(many=True))
    def get(self, request: Request, deployment_id: str) -> Response:
        """Its own, or those that it shares with others of its base model."""
        deployment = find_deployment(actor_of(request), deployment_id)
        return Response(ReplicaOutput(list_replicas_of(deployment), many=True).data)


class ReplicaList(APIView):
    """The sampling servers of this installation, and which engine each of them is."""

    @extend_schema(responses=ReplicaOutput(many=True))
    def get(self, request: Request) -> Response:
        replicas = list_replicas_for(actor_of(request))
        return Response(ReplicaOutput(replicas, many=True).data)
