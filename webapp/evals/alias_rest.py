"""REST: aliases and their moves."""

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
from webapp.core.errors import NotFound, UserError
from webapp.evals.alias_rules import BETTER, LEVEL, TESTS, describe_rule
from webapp.evals.aliases import call_off, create_alias, delete_alias, request_move, roll_back
from webapp.evals.models import Alias, AliasMove, AliasQuerySet, AliasRule, EvalSuite
from webapp.evals.rule_changes import change_rule


class MoveOutput(serializers.ModelSerializer[AliasMove]):
    class Meta:
        model = AliasMove
        fields = (
            "id",
            "outcome",
            "text",
            "checkpoint",
            "previous",
            "evaluation",
            "previous_evaluation",
            "statistics",
            "created_at",
            "ended_at",
        )


class AliasOutput(serializers.ModelSerializer[Alias]):
    class Meta:
        model = Alias
        fields = ("id", "name", "checkpoint", "suite", "rule", "created_at", "moved_at")


class AliasRuleInput(serializers.Serializer[Alias]):
    suite = serializers.CharField(
        required=False, allow_null=True, default=None, help_text="An id; null: it moves freely."
    )
    grader = serializers.CharField(
        required=False, allow_blank=True, default="", help_text="Empty: the suite's first one."
    )
    test = serializers.ChoiceField(TESTS, default=BETTER)
    margin = serializers.FloatField(default=0.0, help_text="Points that not_worse may lose.")
    level = serializers.FloatField(default=LEVEL, help_text="How sure the test has to be.")


class AliasInput(AliasRuleInput):
    name = serializers.CharField(max_length=80)


class AliasRuleOutput(serializers.ModelSerializer[AliasRule]):
    text = serializers.SerializerMethodField(help_text="The rule in a sentence.")
    user = serializers.CharField(source="user.username", default="")

    class Meta:
        model = AliasRule
        fields = ("id", "suite", "rule", "text", "user", "created_at")

    def get_text(self, row: AliasRule) -> str:
        return describe_rule(row.suite, row.rule)


class MoveInput(serializers.Serializer[Alias]):
    checkpoint = serializers.CharField(help_text="An id.")


def find_alias(actor: Actor, alias_id: str) -> Alias:
    """By its id, or by its name in the key's project."""
    rows = Alias.objects.visible_to(actor).select_related("suite", "checkpoint__run", "project")
    named = rows.filter(project=actor.project, name=alias_id)
    alias = rows.filter(pk=alias_id).first() or named.first()
    if alias is None:
        raise NotFound(f"There is no alias {alias_id}.")
    return alias


def find_suite(actor: Actor, suite_id: str | None) -> EvalSuite | None:
    """None where none is asked for."""
    if not suite_id:
        return None
    suite = EvalSuite.objects.visible_to(actor).filter(pk=suite_id).first()
    if suite is None:
        raise UserError(f"There is no suite {suite_id}.", field="suite")
    return suite


class AliasList(ListAPIView[Alias]):
    """The aliases of this project."""

    serializer_class = AliasOutput
    queryset = Alias.objects.all()

    def get_queryset(self) -> AliasQuerySet:
        return Alias.objects.in_project(actor_of(self.request))

    @extend_schema(request=AliasInput, responses={201: AliasOutput})
    def post(self, request: Request) -> Response:
        """A name for checkpoints. It names none until its first move, which is free."""
        data = AliasInput(data=request.data)
        data.is_valid(raise_exception=True)

        def create() -> Response:
            fields = dict(data.validated_data)
            actor = actor_of(request)
            suite = find_suite(actor, fields.pop("suite"))
            alias = create_alias(actor=actor, suite=suite, **fields)
            return Response(AliasOutput(alias).data, status=status.HTTP_201_CREATED)

        return answer_once(request, create)


class AliasDetail(APIView):
    """One alias, by its id or name."""

    @extend_schema(responses=AliasOutput)
    def get(self, request: Request, alias_id: str) -> Response:
        return Response(AliasOutput(find_alias(actor_of(request), alias_id)).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, alias_id: str) -> Response:
        """The name and its history; the checkpoint stays."""
        actor = actor_of(request)
        delete_alias(actor=actor, alias=find_alias(actor, alias_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


class AliasMoves(APIView):
    """Every move that was asked of an alias, the newest first."""

    @extend_schema(responses=MoveOutput(many=True))
    def get(self, request: Request, alias_id: str) -> Response:
        alias = find_alias(actor_of(request), alias_id)
        return Response(MoveOutput(alias.moves.all()[:200], many=True).data)

    @extend_schema(request=MoveInput, responses={202: MoveOutput})
    def post(self, request: Request, alias_id: str) -> Response:
        """Ask it to name another checkpoint. What is missing is evaluated first: `waiting`."""
        data = MoveInput(data=request.data)
        data.is_valid(raise_exception=True)

        def ask() -> Response:
            actor, wanted = actor_of(request), data.validated_data["checkpoint"]
            rows = Checkpoint.objects.visible_to(actor).select_related("run", "base_model")
            checkpoint = rows.filter(pk=wanted).first()
            if checkpoint is None:
                raise UserError(f"There is no checkpoint {wanted}.", field="checkpoint")
            alias = find_alias(actor, alias_id)
            move = request_move(actor=actor, alias=alias, checkpoint=checkpoint)
            return Response(MoveOutput(move).data, status=status.HTTP_202_ACCEPTED)

        return answer_once(request, ask)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, alias_id: str) -> Response:
        """Call off the move that waits."""
        actor = actor_of(request)
        call_off(actor=actor, alias=find_alias(actor, alias_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


class AliasRules(APIView):
    """What an alias asked of its moves, the newest rule first: each held until the next began."""

    @extend_schema(responses=AliasRuleOutput(many=True))
    def get(self, request: Request, alias_id: str) -> Response:
        alias = find_alias(actor_of(request), alias_id)
        rows = alias.rules.select_related("suite", "user").defer("suite__items")
        return Response(AliasRuleOutput(rows[:200], many=True).data)

    @extend_schema(request=AliasRuleInput, responses={201: AliasRuleOutput})
    def post(self, request: Request, alias_id: str) -> Response:
        """Another rule, whole, in the place of the one that holds. What the alias names stays."""
        data = AliasRuleInput(data=request.data)
        data.is_valid(raise_exception=True)

        def change() -> Response:
            fields = dict(data.validated_data)
            actor = actor_of(request)
            alias, suite = find_alias(actor, alias_id), find_suite(actor, fields.pop("suite"))
            change_rule(actor=actor, alias=alias, suite=suite, **fields)
            newest = alias.rules.select_related("suite", "user").first()
            return Response(AliasRuleOutput(newest).data, status=status.HTTP_201_CREATED)

        return answer_once(request, change)


class AliasRollback(APIView):
    """Back to what it named before, without a test."""

    @extend_schema(request=None, responses=MoveOutput)
    def post(self, request: Request, alias_id: str) -> Response:
        actor = actor_of(request)
        move = roll_back(actor=actor, alias=find_alias(actor, alias_id))
        return Response(MoveOutput(move).data)
