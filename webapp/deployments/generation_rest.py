"""REST: question-answer pairs of documents, reviewed, as a dataset version."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.generics import ListAPIView
from rest_framework.parsers import FormParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.accounts.idempotency import answer_once
from webapp.core.errors import NotFound
from webapp.datasets.generations import (
    DEFAULTS,
    cancel_generation,
    create_generation,
    delete_generation,
    find_pair,
    finish_generation,
    review_all,
    review_pair,
)
from webapp.datasets.records import GeneratedPair, Generation, GenerationQuerySet
from webapp.datasets.rest import VersionOutput
from webapp.deployments.generation_views import find_generation, read_target


class GenerationOutput(serializers.ModelSerializer[Generation]):
    class Meta:
        model = Generation
        fields = (
            "id",
            "name",
            "status",
            "target",
            "options",
            "error",
            "version",
            "created_at",
        )


class GenerationInput(serializers.Serializer[Generation]):
    name = serializers.CharField(max_length=120, help_text="Of the dataset.")
    documents = serializers.ListField(
        child=serializers.FileField(), help_text="Markdown, text or PDF."
    )
    target = serializers.CharField(help_text="Id of a deployment, a checkpoint or a base model.")
    num_pairs = serializers.IntegerField(default=DEFAULTS["num_pairs"])
    passage_characters = serializers.IntegerField(default=DEFAULTS["passage_characters"])
    max_tokens = serializers.IntegerField(default=DEFAULTS["max_tokens"])
    temperature = serializers.FloatField(default=DEFAULTS["temperature"])
    seed = serializers.IntegerField(default=DEFAULTS["seed"])


class GeneratedPairOutput(serializers.ModelSerializer[GeneratedPair]):
    document = serializers.CharField(source="passage.document", read_only=True)
    place = serializers.CharField(source="passage.place", read_only=True)
    passage = serializers.CharField(source="passage.text", read_only=True)

    class Meta:
        model = GeneratedPair
        fields = ("id", "question", "answer", "state", "is_edited", "document", "place", "passage")


class GeneratedPairInput(serializers.Serializer[GeneratedPair]):
    state = serializers.ChoiceField(choices=GeneratedPair.State.choices, required=False)
    question = serializers.CharField(required=False)
    answer = serializers.CharField(required=False)


class GenerationActInput(serializers.Serializer[Generation]):
    act = serializers.ChoiceField(choices=["cancel", "accept_rest", "reject_rest", "finish"])


class GenerationList(ListAPIView[Generation]):
    """Generations of this project."""

    serializer_class = GenerationOutput
    parser_classes = (MultiPartParser, FormParser)
    queryset = Generation.objects.all()

    def get_queryset(self) -> GenerationQuerySet:
        return Generation.objects.visible_to(actor_of(self.request))

    @extend_schema(request=GenerationInput, responses={202: GenerationOutput})
    def post(self, request: Request) -> Response:
        """Upload documents; a worker asks the model about every passage of them."""
        data = GenerationInput(data=request.data)
        data.is_valid(raise_exception=True)
        wanted: dict[str, Any] = dict(data.validated_data)

        def create() -> Response:
            actor = actor_of(request)
            generation = create_generation(
                actor=actor,
                name=wanted["name"],
                documents=wanted["documents"],
                options={name: wanted[name] for name in DEFAULTS},
                **read_target(actor, wanted["target"]),
            )
            body = GenerationOutput(generation).data
            return Response(body, status=status.HTTP_202_ACCEPTED)

        return answer_once(request, create)


class GenerationDetail(APIView):
    """One generation."""

    @extend_schema(responses=GenerationOutput)
    def get(self, request: Request, generation_id: str) -> Response:
        found = find_generation(actor_of(request), generation_id)
        return Response(GenerationOutput(found).data)

    @extend_schema(
        operation_id="generations_act", request=GenerationActInput, responses=GenerationOutput
    )
    def post(self, request: Request, generation_id: str) -> Response:
        """Cancel it, decide about the pairs that nobody decided about, or make the version."""
        actor = actor_of(request)
        generation = find_generation(actor, generation_id)
        data = GenerationActInput(data=request.data)
        data.is_valid(raise_exception=True)
        act = data.validated_data["act"]
        if act == "cancel":
            cancel_generation(actor=actor, generation=generation)
        elif act == "finish":
            version = finish_generation(actor=actor, generation=generation)
            return Response(VersionOutput(version).data, status=status.HTTP_202_ACCEPTED)
        else:
            state = "accepted" if act == "accept_rest" else "rejected"
            review_all(actor=actor, generation=generation, state=state)
        return Response(GenerationOutput(generation).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, generation_id: str) -> Response:
        """Its documents and pairs; the version that was made of it stays."""
        actor = actor_of(request)
        delete_generation(actor=actor, generation=find_generation(actor, generation_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


class PairList(ListAPIView[GeneratedPair]):
    """The pairs of one generation."""

    serializer_class = GeneratedPairOutput
    pagination_class = None
    queryset = GeneratedPair.objects.all()

    def get_queryset(self) -> Any:
        generation = find_generation(actor_of(self.request), self.kwargs["generation_id"])
        pairs = GeneratedPair.objects.filter(passage__generation=generation)
        return pairs.select_related("passage")


class PairDetail(APIView):
    """One pair under review."""

    @extend_schema(request=GeneratedPairInput, responses=GeneratedPairOutput)
    def patch(self, request: Request, generation_id: str, pair_id: int) -> Response:
        """Accept or reject it; a pair that is corrected is accepted with that."""
        actor = actor_of(request)
        generation = find_generation(actor, generation_id)
        data = GeneratedPairInput(data=request.data)
        data.is_valid(raise_exception=True)
        if not data.validated_data:
            raise NotFound("Say the state, the question or the answer.")
        pair = find_pair(generation, pair_id)
        review_pair(actor=actor, pair=pair, **data.validated_data)
        return Response(GeneratedPairOutput(pair).data)
