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
from webapp.accounts.permissions import check_may_administer, may_administer
from webapp.core.errors import NotFound
from webapp.core.paging import AddedCursorPagination
from webapp.fleet.isolation import start_isolation_test
from webapp.fleet.models import BaseModel, IsolationTest, Worker
from webapp.fleet.services import add_base_model, find_base_model, remove_base_model
from webapp.fleet.workers import hide_names


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
    holds = serializers.SerializerMethodField(
        help_text="What it has in memory. Operators read which runs and checkpoints those are,"
        " others how many."
    )

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

    def get_holds(self, worker: Worker) -> dict[str, Any]:
        is_whole = may_administer(self.context["actor"])
        return worker.holds if is_whole else hide_names(worker.holds)


class WorkerList(APIView):
    """The processes that train and sample here."""

    @extend_schema(responses=WorkerOutput(many=True))
    def get(self, request: Request) -> Response:
        context = {"actor": actor_of(request)}
        return Response(WorkerOutput(Worker.objects.all(), many=True, context=context).data)


class DifferenceOutput(serializers.Serializer[Any]):
    quantity = serializers.ChoiceField(["loss", "logprobs", "gradients"])
    largest = serializers.FloatField(
        allow_null=True, help_text="The largest difference; null: it is no number."
    )
    beside = serializers.FloatField(allow_null=True, help_text="The largest number of the tenant.")
    share = serializers.FloatField(allow_null=True, help_text="The one over the other.")
    tolerance = serializers.FloatField(help_text="Of the share.")
    is_within = serializers.BooleanField()


class IsolationTestOutput(serializers.ModelSerializer[IsolationTest]):
    differences = DifferenceOutput(many=True, read_only=True)

    class Meta:
        model = IsolationTest
        fields = (
            "id",
            "worker",
            "base_model",
            "status",
            "error",
            "dtype",
            "num_tokens",
            "differences",
            "is_passed",
            "seconds",
            "created_at",
            "ended_at",
        )


class IsolationTestInput(serializers.Serializer[IsolationTest]):
    worker = serializers.CharField(help_text="A gpu worker that is alive.")
    base_model = serializers.CharField(help_text="One that it holds, by any of its names.")


class IsolationTestList(APIView):
    """Tests of whether runs that share passes touch each other, newest first."""

    @extend_schema(responses=IsolationTestOutput(many=True))
    def get(self, request: Request) -> Response:  # noqa: ARG002 - DRF's
        return Response(IsolationTestOutput(IsolationTest.objects.all(), many=True).data)

    @extend_schema(request=IsolationTestInput, responses={201: IsolationTestOutput})
    def post(self, request: Request) -> Response:
        """Start one. The worker makes its ten passes between those of the runs."""
        data = IsolationTestInput(data=request.data)
        data.is_valid(raise_exception=True)
        test = start_isolation_test(actor=actor_of(request), **data.validated_data)
        return Response(IsolationTestOutput(test).data, status=status.HTTP_201_CREATED)


class IsolationTestDetail(APIView):
    """One of them, by id."""

    @extend_schema(responses=IsolationTestOutput)
    def get(self, request: Request, test_id: str) -> Response:  # noqa: ARG002 - DRF's
        test = IsolationTest.objects.filter(pk=test_id).first()
        if test is None:
            raise NotFound(f"There is no isolation test {test_id}.")
        return Response(IsolationTestOutput(test).data)
