"""REST: the lineage of a project, or of one thing in it."""

from collections.abc import Mapping
from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.lineage.graph import Node
from webapp.lineage.pages import Question, answer, describe_bounds

MOST_LISTED = 2000  # nodes in one answer


class NodeOutput(serializers.Serializer[Any]):
    id = serializers.CharField()
    kind = serializers.CharField(
        help_text="base, dataset, run, checkpoint, evaluation, deployment or alias."
    )
    name = serializers.CharField()
    detail = serializers.CharField()
    facts = serializers.DictField(child=serializers.CharField())
    count = serializers.IntegerField(help_text="How many it stands for; 1: itself.")
    fold = serializers.CharField(
        help_text="Send it as open to see what it stands for; empty: it is one thing."
    )
    created_at = serializers.DateTimeField(allow_null=True)


class EdgeOutput(serializers.Serializer[Any]):
    parent = serializers.CharField(  # type: ignore[assignment]
        help_text="The id of what the child came of."
    )
    child = serializers.CharField()


class LineageOutput(serializers.Serializer[Any]):
    nodes = NodeOutput(many=True)
    edges = EdgeOutput(many=True)
    num_nodes = serializers.IntegerField(help_text="Before anything was folded or left out.")
    note = serializers.CharField(help_text="What is left out, in a sentence; empty: nothing.")


PARAMETERS = [
    OpenApiParameter("focus", str, description="An id: what it comes from, and what came of it."),
    OpenApiParameter("depth", int, description="So many edges away from focus; left out: all."),
    OpenApiParameter(
        "fold", bool, description="1: many runs of a group, or checkpoints of a run, are one."
    ),
    OpenApiParameter("open", str, many=True, description="Folds that are shown open."),
    OpenApiParameter("q", str, description="Nodes with this text are never folded."),
]


class Lineage(APIView):
    """What came of what: dataset versions, runs, checkpoints, evaluations, deployments, aliases."""

    @extend_schema(parameters=PARAMETERS, responses=LineageOutput)
    def get(self, request: Request) -> Response:
        """As nodes and edges. Of a large project the newest runs; focus shows any other."""
        query = request.query_params.copy()
        query.setdefault("fold", "0")
        answered = answer(actor_of(request), Question.read(query))
        shown = list(answered.graph.nodes.values())[:MOST_LISTED]
        notes = [describe_bounds(answered), _describe_rest(len(answered.graph.nodes))]
        return Response(
            {
                "nodes": [write_node(node) for node in shown],
                "edges": list_edges(shown),
                "num_nodes": answered.num_all,
                "note": " ".join(note for note in notes if note),
            }
        )


def _describe_rest(number: int) -> str:
    if number <= MOST_LISTED:
        return ""
    return f"{MOST_LISTED:,} of {number:,} nodes are listed: send focus, or fold=1."


def write_node(node: Node) -> Mapping[str, Any]:
    return {
        "id": node.id,
        "kind": node.kind,
        "name": node.label,
        "detail": node.detail,
        "facts": dict(node.facts),
        "count": node.count,
        "fold": node.fold,
        "created_at": node.created_at,
    }


def list_edges(shown: list[Node]) -> list[Mapping[str, str]]:
    ids = {node.id for node in shown}
    return [
        {"parent": parent, "child": node.id}
        for node in shown
        for parent in dict.fromkeys(node.parents)
        if parent in ids
    ]
