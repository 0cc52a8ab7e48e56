"""REST: several evaluations of one suite, compared with one of them."""

from typing import Any, ClassVar

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.evals.choice import read_choice
from webapp.evals.comparison import Comparison, sum_up
from webapp.evals.items import list_rows, select_rows
from webapp.evals.naming import name_subject
from webapp.evals.relations import describe_relation


class PairOutput(serializers.Serializer[Any]):
    evaluation = serializers.CharField(source="second.pk")
    weights = serializers.SerializerMethodField()
    verdict = serializers.CharField()
    outcome = serializers.CharField(help_text="better, worse, the same or may be chance.")
    baseline_mean = serializers.FloatField(source="first_mean")
    mean = serializers.FloatField(source="second_mean")
    wins = serializers.IntegerField()
    losses = serializers.IntegerField()
    ties = serializers.IntegerField()
    left_out = serializers.IntegerField(source="num_left_out")
    difference = serializers.FloatField(help_text="Points, against the baseline.")
    interval = serializers.SerializerMethodField()
    test = serializers.CharField()
    p_value = serializers.SerializerMethodField(help_text="Null: different judges, so no test.")
    adjusted_p_value = serializers.SerializerMethodField(help_text="By Holm.")
    judges = serializers.CharField(
        source="judges.text", help_text="Where the two were not judged by the same weights."
    )
    relation = serializers.SerializerMethodField()

    def get_weights(self, found: Comparison) -> str:
        return name_subject(found.second)

    def get_interval(self, found: Comparison) -> list[float] | None:
        """95 %, in points."""
        return [found.low, found.high] if found.is_paired else None

    def get_p_value(self, found: Comparison) -> float | None:
        return found.p_value if found.is_paired else None

    def get_adjusted_p_value(self, found: Comparison) -> float | None:
        return found.adjusted if found.is_paired else None

    def get_relation(self, found: Comparison) -> list[str]:
        return describe_relation(found.first, found.second)


class FlipOutput(serializers.Serializer[Any]):
    item = serializers.IntegerField(help_text="Of the suite, from 0.")
    change = serializers.CharField()
    scores = serializers.ListField(
        child=serializers.FloatField(allow_null=True), help_text="The baseline's first."
    )


class ManyOutput(serializers.Serializer[Any]):
    verdict = serializers.CharField()
    suite = serializers.CharField()
    grader = serializers.CharField()
    baseline = serializers.CharField()
    comparisons = PairOutput(many=True)
    flips = FlipOutput(many=True)


class EvaluationsComparison(APIView):
    """Two to eight evaluations of one suite."""

    PARAMETERS: ClassVar = [
        OpenApiParameter("evaluations", str, required=True, description="Ids, by commas."),
        OpenApiParameter("baseline", str, description="One of them; the first, if absent."),
        OpenApiParameter("grader", str),
    ]

    @extend_schema(parameters=PARAMETERS, responses=ManyOutput)
    def get(self, request: Request) -> Response:
        """The numbers of the comparison's page; flips with what got worse first."""
        choice = read_choice(actor_of(request), request.query_params)
        comparisons = choice.compare()
        flips = select_rows(list_rows(comparisons), "flips")
        return Response(
            {
                "verdict": sum_up(comparisons),
                "suite": choice.baseline.suite_id,
                "grader": comparisons[0].grader,
                "baseline": choice.baseline.pk,
                "comparisons": PairOutput(comparisons, many=True).data,
                "flips": [
                    {
                        "item": row.index,
                        "change": row.change,
                        "scores": [
                            row.before.score,
                            *(each.second_score if each else None for each in row.samples),
                        ],
                    }
                    for row in flips
                ],
            }
        )
