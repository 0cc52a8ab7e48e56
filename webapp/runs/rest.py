"""REST: runs, their numbers, samples and log, and everything a person may press."""

from collections.abc import Callable
from typing import Any, ClassVar

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.accounts.idempotency import answer_once
from webapp.accounts.models import Actor
from webapp.core.counts import read_count
from webapp.core.errors import NotFound, UserError
from webapp.datasets.models import DatasetVersion
from webapp.fleet.services import find_base_model
from webapp.runs import services, steering
from webapp.runs.forecast import forecast_run
from webapp.runs.history import MAX_POINTS, read_metrics
from webapp.runs.methods import METHODS
from webapp.runs.models import LogLine, Origin, Run, RunQuerySet, Sample
from webapp.runs.parents import find_parent
from webapp.runs.room import Need


class RunOutput(serializers.ModelSerializer[Run]):
    model_id = serializers.CharField(read_only=True, help_text="Its name in the Tinker dialect.")

    class Meta:
        model = Run
        fields = (
            "id",
            "model_id",
            "name",
            "origin",
            "recipe",
            "status",
            "wish",
            "error",
            "base_model",
            "dataset_version",
            "parent",
            "group",
            "after",
            "with_optimizer",
            "rank",
            "lora",
            "optimizer",
            "config",
            "notes",
            "step",
            "total_steps",
            "num_tokens",
            "tokens_per_second",
            "last_loss",
            "predicted_bytes",
            "peak_bytes",
            "created_at",
            "started_at",
            "ended_at",
        )
        extra_kwargs: ClassVar = {"rank": {"help_text": "Of its adapter; 0: all weights learn."}}


class RunInput(serializers.Serializer[Run]):
    name = serializers.CharField(max_length=120, required=False, allow_blank=True, default="")
    base_model = serializers.CharField(help_text="Any of its names.")
    dataset_version = serializers.CharField(
        required=False, help_text="An id; its status is ready, and its kind one the recipe takes."
    )
    recipe = serializers.ChoiceField(
        list(METHODS),
        default="sft",
        help_text="; ".join(f"{each.recipe}: {each.label}" for each in METHODS.values()) + ".",
    )
    config = serializers.DictField(
        required=False,
        default=dict,
        help_text="rank (0: all weights), learning_rate, schedule, batch_size, steps or epochs, "
        "held_out_share, sampling, checkpoint_every, evaluate_every, and the recipe's own ...; "
        "what is left out has a default.",
    )
    parent = serializers.CharField(  # type: ignore[assignment]
        required=False, help_text="A checkpoint to begin from."
    )
    with_optimizer = serializers.BooleanField(default=False)


def find_run(request: Request, run_id: str) -> Run:
    run = Run.objects.visible_to(actor_of(request)).filter(pk=run_id).first()
    if run is None:
        raise NotFound(f"There is no run {run_id}.")
    return run


@extend_schema(parameters=[OpenApiParameter("status", str, enum=Run.Status.values)])
class RunList(ListAPIView[Run]):
    """The runs of this project, whatever door they came through."""

    serializer_class = RunOutput
    queryset = Run.objects.all()

    def get_queryset(self) -> RunQuerySet:
        runs = Run.objects.visible_to(actor_of(self.request)).select_related("session")
        wanted = self.request.query_params.get("status")
        return runs.filter(status=wanted) if wanted else runs

    @extend_schema(request=RunInput, responses={201: RunOutput})
    def post(self, request: Request) -> Response:
        """Launch a run."""
        data = RunInput(data=request.data)
        data.is_valid(raise_exception=True)

        def create() -> Response:
            run = _launch(request, data.validated_data)
            return Response(RunOutput(run).data, status=status.HTTP_201_CREATED)

        return answer_once(request, create)


def _launch(request: Request, data: dict[str, Any]) -> Run:
    actor = actor_of(request)
    return services.create_run(actor=actor, **read_launch(actor, data))


def read_launch(actor: Actor, data: dict[str, Any]) -> dict[str, Any]:
    """What `create_run` takes beside the actor, from a checked RunInput."""
    return {
        "origin": Origin.REST,
        "name": data["name"],
        "base_model": find_base_model(data["base_model"]),
        "dataset_version": find_version(actor, data.get("dataset_version")),
        "config": data["config"],
        "parent": find_parent(actor, data.get("parent", "")),
        "with_optimizer": data["with_optimizer"],
        "recipe": data["recipe"],
    }


def find_version(actor: Actor, version_id: str | None) -> DatasetVersion | None:
    """None where none was named; one that may not be seen is the caller's mistake."""
    if version_id is None:
        return None
    versions = DatasetVersion.objects.visible_to(actor).select_related("dataset")
    version = versions.filter(pk=version_id).first()
    if version is None:
        raise UserError(f"There is no dataset version {version_id}.", field="dataset_version")
    return version


class MemoryOutput(serializers.Serializer[Any]):
    bytes = serializers.IntegerField(help_text="Of the largest pass, at its peak.")
    parts = serializers.DictField(child=serializers.IntegerField(), help_text="In bytes.")
    num_tokens = serializers.IntegerField(help_text="Of the largest pass.")
    worker = serializers.CharField(help_text="The one with the most memory.")
    worker_bytes = serializers.IntegerField(help_text="What it has for a run and its base model.")
    problem = serializers.CharField(help_text="Why it does not fit, and what to change; or empty.")


class ForecastOutput(serializers.Serializer[Any]):
    num_rows = serializers.IntegerField(help_text="Trained on; the others are held out.")
    num_steps = serializers.IntegerField()
    num_tokens = serializers.FloatField()
    seconds = serializers.FloatField(allow_null=True, help_text="null: no speed is known yet.")
    least_seconds = serializers.FloatField(allow_null=True)
    most_seconds = serializers.FloatField(allow_null=True)
    basis = serializers.CharField(help_text="Where the numbers come from.")
    memory = MemoryOutput(allow_null=True, help_text="null: no worker has told its own.")


class RunForecast(APIView):
    """What a run would do, before it is launched."""

    @extend_schema(request=RunInput, responses=ForecastOutput)
    def post(self, request: Request) -> Response:
        """Its steps, tokens, time and memory. Nothing is created."""
        data = RunInput(data=request.data)
        data.is_valid(raise_exception=True)
        given, actor = data.validated_data, actor_of(request)
        parent, config = find_parent(actor, given.get("parent", "")), given["config"]
        version = find_version(actor, given.get("dataset_version"))
        services.check_version(version, given["recipe"])
        found = forecast_run(
            version=version,
            base_model=find_base_model(given["base_model"]),
            config=services.take_shape(config, parent) if parent else config,
            recipe=given["recipe"],
        )
        estimate = found.estimate
        return Response(
            {
                "num_rows": found.num_rows,
                "num_steps": found.num_steps,
                "num_tokens": found.num_tokens,
                "seconds": estimate and estimate.seconds,
                "least_seconds": estimate and estimate.least_seconds,
                "most_seconds": estimate and estimate.most_seconds,
                "basis": estimate.basis if estimate else "",
                "memory": found.need and _describe_need(found.need),
            }
        )


def _describe_need(need: Need) -> dict[str, Any]:
    return {
        "bytes": need.footprint.total,
        "parts": dict(need.footprint.parts),
        "num_tokens": need.num_tokens,
        "worker": need.worker,
        "worker_bytes": need.room_bytes,
        "problem": need.problem,
    }


class RunDetail(APIView):
    """One run."""

    @extend_schema(responses=RunOutput)
    def get(self, request: Request, run_id: str) -> Response:
        return Response(RunOutput(find_run(request, run_id)).data)


class MetricsOutput(serializers.Serializer[Any]):
    series = serializers.DictField(help_text="By key: a list of [step, value, time].")
    last_id = serializers.IntegerField(help_text="Send it as `after` to read what is new.")


class RunMetrics(APIView):
    """A run's curves."""

    @extend_schema(
        parameters=[
            OpenApiParameter("key", str, many=True),
            OpenApiParameter("after", int, description="last_id of the answer before."),
        ],
        responses=MetricsOutput,
    )
    def get(self, request: Request, run_id: str) -> Response:
        """Thinned to at most 1,000 points a curve; the extremes stay."""
        run = find_run(request, run_id)
        keys = request.query_params.getlist("key") or None
        after = read_count(request.query_params.get("after", "0"), "after")
        history = read_metrics(run, keys, after_id=after, max_points=MAX_POINTS)
        series = {
            key: [[point.step, point.value, point.at] for point in points]
            for key, points in history.series.items()
        }
        return Response({"series": series, "last_id": history.last_id})


class SampleOutput(serializers.ModelSerializer[Sample]):
    class Meta:
        model = Sample
        fields = (
            "step",
            "prompt_index",
            "prompt",
            "completion",
            "stop_reason",
            "checkpoint",
            "digest",
            "error",
        )


class RunSamples(APIView):
    """What a run's model said to its pinned prompts, step by step."""

    @extend_schema(responses=SampleOutput(many=True))
    def get(self, request: Request, run_id: str) -> Response:
        return Response(SampleOutput(find_run(request, run_id).samples.all(), many=True).data)


class LogLineOutput(serializers.ModelSerializer[LogLine]):
    class Meta:
        model = LogLine
        fields = ("id", "level", "step", "text", "at")


class RunLog(APIView):
    """What happened to a run, in sentences."""

    @extend_schema(responses=LogLineOutput(many=True))
    def get(self, request: Request, run_id: str) -> Response:
        return Response(LogLineOutput(find_run(request, run_id).log_lines.all(), many=True).data)


class LearningRateInput(serializers.Serializer[Run]):
    learning_rate = serializers.FloatField(min_value=0)


class RunAction(APIView):
    """Something a person may press; `act` says what."""

    act: ClassVar[Callable[..., None]]

    @extend_schema(request=None, responses=RunOutput)
    def post(self, request: Request, run_id: str) -> Response:
        run = find_run(request, run_id)
        type(self).act(actor=actor_of(request), run=run)
        run.refresh_from_db()
        return Response(RunOutput(run).data)


class RunPause(RunAction):
    """Pause between two steps."""

    act = staticmethod(steering.request_pause)


class RunResume(RunAction):
    """Go on where a paused run stopped."""

    act = staticmethod(steering.resume_run)


class RunStop(RunAction):
    """Stop for good; what was learned is saved first."""

    act = staticmethod(steering.request_stop)


class RunSave(RunAction):
    """Save a checkpoint after the current step."""

    act = staticmethod(steering.request_save)


class RunEvaluate(RunAction):
    """Measure held-out loss and ask the pinned prompts after the current step."""

    act = staticmethod(steering.request_evaluation)


class RunLearningRate(APIView):
    """The learning rate of a running recipe."""

    @extend_schema(request=LearningRateInput, responses=RunOutput)
    def post(self, request: Request, run_id: str) -> Response:
        """Change it from the next step on."""
        run = find_run(request, run_id)
        data = LearningRateInput(data=request.data)
        data.is_valid(raise_exception=True)
        steering.change_learning_rate(
            actor=actor_of(request), run=run, learning_rate=data.validated_data["learning_rate"]
        )
        run.refresh_from_db()
        return Response(RunOutput(run).data)
