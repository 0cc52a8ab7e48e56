"""REST: what the diagnostics found in a run, and what they did not."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.accounts.models import Actor
from webapp.runs.diagnostics import State
from webapp.runs.findings import Entry, dismiss_finding, list_entries, restore_finding
from webapp.runs.records import Finding
from webapp.runs.rest import find_run
from webapp.runs.thresholds import THRESHOLDS, read_values, reset_thresholds, set_thresholds


class FindingOutput(serializers.Serializer[Any]):
    diagnostic = serializers.CharField()
    title = serializers.CharField()
    state = serializers.ChoiceField(
        [state.value for state in State],
        help_text="found; clear: looked at, nothing found; waiting: too little to look at yet; "
        "not_applicable: text says why.",
    )
    text = serializers.CharField(help_text="What is wrong and what to do, or why nothing is said.")
    advice = serializers.CharField()
    level = serializers.ChoiceField(Finding.Level.choices, allow_null=True)
    step = serializers.IntegerField(allow_null=True, help_text="Where it was first seen.")
    last_step = serializers.IntegerField(allow_null=True)
    facts = serializers.DictField(help_text="The numbers, and what shows it.")
    created_at = serializers.DateTimeField(allow_null=True)
    seen_at = serializers.DateTimeField(allow_null=True)
    ended_at = serializers.DateTimeField(allow_null=True, help_text="Set: it is over.")
    dismissed_at = serializers.DateTimeField(allow_null=True)


OF_FINDING = (*("level", "step", "last_step", "created_at", "seen_at", "ended_at", "dismissed_at"),)


def describe(entry: Entry) -> dict[str, Any]:
    columns = {name: getattr(entry.finding, name, None) for name in OF_FINDING}
    return {
        "diagnostic": entry.diagnostic.key,
        "title": entry.diagnostic.title,
        "state": entry.state,
        "text": entry.text,
        "advice": entry.diagnostic.advice,
        "facts": entry.finding.facts if entry.finding else {},
        **columns,
    }


class RunFindings(APIView):
    """How each diagnostic stands with a run."""

    @extend_schema(responses=FindingOutput(many=True))
    def get(self, request: Request, run_id: str) -> Response:
        """All of them; what was found comes first."""
        entries = list_entries(find_run(request, run_id))
        return Response([describe(entry) for entry in entries])


class FindingDismissal(APIView):
    """Whether a finding shows its badge."""

    @extend_schema(request=None, responses=FindingOutput(many=True))
    def put(self, request: Request, run_id: str, key: str) -> Response:
        """Dismiss it: no badge, until it ends and begins again."""
        run = find_run(request, run_id)
        dismiss_finding(actor=actor_of(request), run=run, key=key)
        return Response([describe(entry) for entry in list_entries(run)])

    @extend_schema(request=None, responses=FindingOutput(many=True))
    def delete(self, request: Request, run_id: str, key: str) -> Response:
        """Show its badge again."""
        run = find_run(request, run_id)
        restore_finding(actor=actor_of(request), run=run, key=key)
        return Response([describe(entry) for entry in list_entries(run)])


class ThresholdOutput(serializers.Serializer[Any]):
    key = serializers.CharField()
    diagnostic = serializers.CharField()
    meaning = serializers.CharField()
    value = serializers.FloatField()
    default = serializers.FloatField()
    low = serializers.FloatField(help_text="The least that it can be.")
    high = serializers.FloatField()
    is_whole = serializers.BooleanField(help_text="It is a whole number.")


class ThresholdInput(serializers.Serializer[Any]):
    values = serializers.DictField(
        child=serializers.FloatField(allow_null=True),
        help_text="By key. null: the default again; what is left out stays.",
    )


OF_THRESHOLD = ("key", "diagnostic", "meaning", "default", "low", "high", "is_whole")


def describe_thresholds(actor: Actor) -> list[dict[str, Any]]:
    values = read_values(actor.project.pk)
    return [
        {**{name: getattr(each, name) for name in OF_THRESHOLD}, "value": values[each.key]}
        for each in THRESHOLDS
    ]


class Thresholds(APIView):
    """From where on the diagnostics of this project speak."""

    @extend_schema(responses=ThresholdOutput(many=True))
    def get(self, request: Request) -> Response:
        return Response(describe_thresholds(actor_of(request)))

    @extend_schema(request=ThresholdInput, responses=ThresholdOutput(many=True))
    def patch(self, request: Request) -> Response:
        """Set some of them; owners only. Runs of the last day are looked at again."""
        data = ThresholdInput(data=request.data)
        data.is_valid(raise_exception=True)
        actor = actor_of(request)
        set_thresholds(actor=actor, values=data.validated_data["values"])
        return Response(describe_thresholds(actor))

    @extend_schema(request=None, responses=ThresholdOutput(many=True))
    def delete(self, request: Request) -> Response:
        """All of them are the defaults again; owners only."""
        actor = actor_of(request)
        reset_thresholds(actor=actor)
        return Response(describe_thresholds(actor))
