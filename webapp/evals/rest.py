"""REST: suites, evaluations, their results and comparisons."""

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.accounts.idempotency import answer_once
from webapp.accounts.models import Actor
from webapp.core.errors import NotFound, UserError
from webapp.datasets.models import DatasetVersion
from webapp.deployments.rest import find_target
from webapp.evals.comparison import compare
from webapp.evals.models import (
    EvalResult,
    EvalSuite,
    EvalSuiteQuerySet,
    Evaluation,
    EvaluationQuerySet,
)
from webapp.evals.services import (
    cancel_evaluation,
    create_suite,
    request_evaluation,
)
from webapp.evals.task_suites import create_task_suite


class SuiteOutput(serializers.ModelSerializer[EvalSuite]):
    class Meta:
        model = EvalSuite
        fields = (
            "id",
            "name",
            "status",
            "error",
            "kind",
            "spec",
            "dataset_version",
            "selection",
            "graders",
            "sampling",
            "num_items",
            "digest",
            "created_at",
        )


class SuiteInput(serializers.Serializer[EvalSuite]):
    name = serializers.CharField(max_length=120)
    dataset_version = serializers.CharField(
        required=False, allow_null=True, default=None, help_text="Or `spec`: one of the two."
    )
    spec = serializers.DictField(
        required=False,
        default=None,
        help_text='{"source": "reasoning_gym", "task", "seed", "size", "config"}, or '
        '{"source": "built_in", "name"}, or {"source": "items", "items": [{"prompt", "target"}]}.',
    )
    graders = serializers.ListField(
        child=serializers.DictField(), help_text='[{"name": "exact_match"}]; the first scores.'
    )
    held_out_share = serializers.FloatField(default=0.1)
    held_out_by = serializers.ChoiceField(
        choices=("row", "prompt"), default="row", help_text="As the run has it: see its config."
    )
    seed = serializers.IntegerField(default=0)
    limit = serializers.IntegerField(required=False, allow_null=True, default=None)
    sampling = serializers.DictField(
        required=False,
        default=None,
        help_text="max_tokens, temperature, seed (greedy by default), num_samples, pass_at.",
    )


def find_suite(actor: Actor, suite_id: str) -> EvalSuite:
    suite = EvalSuite.objects.visible_to(actor).filter(pk=suite_id).first()
    if suite is None:
        raise NotFound(f"There is no suite {suite_id}.")
    return suite


def find_version(actor: Actor, version_id: str) -> DatasetVersion:
    version = DatasetVersion.objects.visible_to(actor).filter(pk=version_id).first()
    if version is None:
        message = f"There is no dataset version {version_id}."
        raise UserError(message, field="dataset_version")
    return version


def find_evaluation(actor: Actor, evaluation_id: str) -> Evaluation:
    rows = Evaluation.objects.visible_to(actor)
    rows = rows.select_related("suite", "checkpoint", "base_model")
    evaluation = rows.filter(pk=evaluation_id).first()
    if evaluation is None:
        raise NotFound(f"There is no evaluation {evaluation_id}.")
    return evaluation


class SuiteList(ListAPIView[EvalSuite]):
    """The suites of this project."""

    serializer_class = SuiteOutput
    queryset = EvalSuite.objects.all()

    def get_queryset(self) -> EvalSuiteQuerySet:
        return EvalSuite.objects.visible_to(actor_of(self.request)).defer("items")

    @extend_schema(request=SuiteInput, responses={202: SuiteOutput})
    def post(self, request: Request) -> Response:
        """Freeze the rows that a run with this share and seed holds out."""
        data = SuiteInput(data=request.data)
        data.is_valid(raise_exception=True)

        def create() -> Response:
            actor = actor_of(request)
            fields = dict(data.validated_data)
            wanted = fields.pop("dataset_version")
            version = find_version(actor, wanted) if wanted else None
            suite = create_suite(actor=actor, dataset_version=version, **fields)
            return Response(SuiteOutput(suite).data, status=status.HTTP_202_ACCEPTED)

        return answer_once(request, create)


class TaskSuiteInput(serializers.Serializer[EvalSuite]):
    name = serializers.CharField(max_length=120)
    task = serializers.CharField(help_text="YAML of an lm-eval task, without where its rows are.")
    rows = serializers.CharField(
        required=False, default="", trim_whitespace=False, help_text="JSON lines."
    )
    dataset_version = serializers.CharField(
        required=False, allow_null=True, default=None, help_text="Or `rows`: one of the two."
    )
    is_chat = serializers.BooleanField(default=False)


class TaskSuiteList(APIView):
    """Suites that are tasks of lm-eval."""

    @extend_schema(request=TaskSuiteInput, responses={202: SuiteOutput})
    def post(self, request: Request) -> Response:
        """Freeze a task and its rows. Only an owner of the project may."""
        data = TaskSuiteInput(data=request.data)
        data.is_valid(raise_exception=True)

        def create() -> Response:
            actor = actor_of(request)
            fields = dict(data.validated_data)
            wanted = fields.pop("dataset_version")
            version = find_version(actor, wanted) if wanted else None
            suite = create_task_suite(actor=actor, dataset_version=version, **fields)
            return Response(SuiteOutput(suite).data, status=status.HTTP_202_ACCEPTED)

        return answer_once(request, create)


class SuiteItemOutput(SuiteOutput):
    class Meta(SuiteOutput.Meta):
        fields = (*SuiteOutput.Meta.fields, "items")  # type: ignore[assignment]


class SuiteDetail(APIView):
    """One suite with its items."""

    @extend_schema(responses=SuiteItemOutput)
    def get(self, request: Request, suite_id: str) -> Response:
        return Response(SuiteItemOutput(find_suite(actor_of(request), suite_id)).data)


class EvaluationOutput(serializers.ModelSerializer[Evaluation]):
    class Meta:
        model = Evaluation
        fields = (
            "id",
            "suite",
            "base_model",
            "checkpoint",
            "run",
            "status",
            "error",
            "served",
            "num_done",
            "num_known",
            "scores",
            "created_at",
            "ended_at",
        )


class EvaluationInput(serializers.Serializer[Evaluation]):
    suite = serializers.CharField()
    checkpoint = serializers.CharField(required=False)
    base_model = serializers.CharField(required=False)
    is_fresh = serializers.BooleanField(
        default=False, help_text="Ask everything, whatever is known of these weights."
    )


class EvaluationList(ListAPIView[Evaluation]):
    """The evaluations of this project."""

    serializer_class = EvaluationOutput
    queryset = Evaluation.objects.all()

    def get_queryset(self) -> EvaluationQuerySet:
        return Evaluation.objects.visible_to(actor_of(self.request))

    @extend_schema(request=EvaluationInput, responses={202: EvaluationOutput})
    def post(self, request: Request) -> Response:
        """Ask a checkpoint, or a base model, every prompt of a suite."""
        data = EvaluationInput(data=request.data)
        data.is_valid(raise_exception=True)

        def create() -> Response:
            actor = actor_of(request)
            evaluation = request_evaluation(
                actor=actor,
                suite=find_suite(actor, data.validated_data["suite"]),
                is_fresh=data.validated_data["is_fresh"],
                **find_target(request, data.validated_data),
            )
            return Response(EvaluationOutput(evaluation).data, status=status.HTTP_202_ACCEPTED)

        return answer_once(request, create)


class EvaluationDetail(APIView):
    """One evaluation."""

    @extend_schema(responses=EvaluationOutput)
    def get(self, request: Request, evaluation_id: str) -> Response:
        return Response(EvaluationOutput(find_evaluation(actor_of(request), evaluation_id)).data)

    @extend_schema(responses=EvaluationOutput)
    def delete(self, request: Request, evaluation_id: str) -> Response:
        """Cancel it; the answers that are there stay."""
        evaluation = find_evaluation(actor_of(request), evaluation_id)
        cancel_evaluation(actor=actor_of(request), evaluation=evaluation)
        evaluation.refresh_from_db()
        return Response(EvaluationOutput(evaluation).data)


class ResultOutput(serializers.ModelSerializer[EvalResult]):
    class Meta:
        model = EvalResult
        fields = (
            "index",
            "sample",
            "completion",
            "num_tokens",
            "stop_reason",
            "scores",
            "notes",
            "judges",
            "checkpoint",
            "digest",
            "error",
        )


class EvaluationResults(APIView):
    """Every answer of an evaluation, in the order of the suite's items."""

    @extend_schema(responses=ResultOutput(many=True))
    def get(self, request: Request, evaluation_id: str) -> Response:
        evaluation = find_evaluation(actor_of(request), evaluation_id)
        return Response(ResultOutput(evaluation.results.all(), many=True).data)


class ComparisonOutput(serializers.Serializer[Any]):
    verdict = serializers.CharField()
    grader = serializers.CharField()
    a_mean = serializers.FloatField()
    b_mean = serializers.FloatField()
    wins = serializers.IntegerField()
    losses = serializers.IntegerField()
    ties = serializers.IntegerField()
    difference = serializers.FloatField(help_text="Percentage points, b minus a.")
    interval = serializers.ListField(
        child=serializers.FloatField(), allow_null=True, help_text="95%, paired."
    )
    p_value = serializers.FloatField(
        allow_null=True, help_text="McNemar, or a permutation test. Null: they had other judges."
    )
    judges = serializers.CharField(help_text="Where the two were not judged by the same weights.")


class EvaluationComparison(APIView):
    """Two evaluations of one suite, item by item."""

    @extend_schema(
        parameters=[
            OpenApiParameter("a", str, required=True),
            OpenApiParameter("b", str, required=True),
            OpenApiParameter("grader", str),
        ],
        responses=ComparisonOutput,
    )
    def get(self, request: Request) -> Response:
        """Whether b is better than a, and how sure that is."""
        actor, query = actor_of(request), request.query_params
        first = find_evaluation(actor, query.get("a", ""))
        second = find_evaluation(actor, query.get("b", ""))
        found = compare(first, second, grader=query.get("grader", ""))
        return Response(
            {
                "verdict": found.verdict,
                "grader": found.grader,
                "a_mean": found.first_mean,
                "b_mean": found.second_mean,
                "wins": found.wins,
                "losses": found.losses,
                "ties": found.ties,
                "difference": found.difference,
                "interval": [found.low, found.high] if found.is_paired else None,
                "p_value": found.p_value if found.is_paired else None,
                "judges": found.judges.text,
            }
        )
