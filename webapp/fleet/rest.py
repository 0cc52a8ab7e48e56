"""REST: base models and workers."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.accounts.idempotency import answer_once
from webapp.accounts.permissions import check_may_administer
from webapp.core.paging import AddedCursorPagination
from webapp.fleet.models import BaseModel, Worker
from webapp.fleet.services import add_base_model, find_base_model, remove_base_model


class BaseModelOutput(serializers.ModelSerializer[BaseModel]):
    names: Any = serializers.SlugRelatedField("name", many=True, read_only=True)

    class Meta:
        model = BaseModel
        fields = (
            "id",
            "names",
            "path",
            "architecture",
            "num_parameters",
            "context_tokens",
            "vocab_size",
            "has_chat_template",
            "digest",
            "added_at",
        )


class BaseModelInput(serializers.Serializer[BaseModel]):
    path = serializers.CharField(help_text="A directory on the machine that Hone runs on.")
    names = serializers.ListField(child=serializers.CharField(max_length=200), allow_empty=False)


class BaseModelList(ListAPIView[BaseModel]):
    """The base models this installation offers."""

    queryset = BaseModel.objects.prefetch_related("names")
    serializer_class = BaseModelOutput
    pagination_class = AddedCursorPagination

    @extend_schema(request=BaseModelInput, responses={201: BaseModelOutput})
    def post(self, request: Request) -> Response:
        """Offer a directory. One that cannot be trained is refused with the reason."""
        check_may_administer(actor_of(request))
        data = BaseModelInput(data=request.data)
        data.is_valid(raise_exception=True)

        def create() -> Response:
            base_model = add_base_model(**data.validated_data)
            return Response(BaseModelOutput(base_model).data, status=status.HTTP_201_CREATED)

        return answer_once(request, create)


class BaseModelDetail(APIView):
    """One base model, by id."""

    @extend_schema(responses=BaseModelOutput)
    def get(self, request: Request, name: str) -> Response:  # noqa: ARG002 - DRF's
        return Response(BaseModelOutput(find_base_model(name)).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, name: str) -> Response:
        """Stop offering it; the directory stays."""
        check_may_administer(actor_of(request))
        remove_base_model(name=name)
        return Response(status=status.HTTP_204_NO_CONTENT)


class WorkerOutput(serializers.ModelSerializer[Worker]):
    class Meta:
        model = Worker
        fields = (
            "name",
            "kind",
            "device",
            "memory_bytes",
            "flops",
            "holds",
            "started_at",
            "heartbeat_at",
        )


class WorkerList(APIView):
    """The processes that train and sample here."""

    @extend_schema(responses=WorkerOutput(many=True))
    def get(self, request: Request) -> Response:  # noqa: ARG002 - DRF's
        return Response(WorkerOutput(Worker.objects.all(), many=True).data)
