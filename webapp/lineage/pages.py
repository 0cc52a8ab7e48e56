"""What somebody asked to see of the graph, and the picture and the list that answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from django.http import QueryDict
from django.urls import reverse

from webapp.accounts.models import Actor, Project
from webapp.core.errors import NotFound, UserError
from webapp.lineage.drawing import Drawn, draw
from webapp.lineage.folding import Folded, fold
from webapp.lineage.graph import Graph, Node, focus, search
from webapp.lineage.layout import Layout, lay_out
from webapp.lineage.reading import MOST_ROWS, MOST_RUNS, find_anchor, read_graph

DEPTHS = (1, 2, 3, 5)
MOST_DRAWN = 800
MOST_HITS = 50
MOST_OPENED = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The state of the page, all of it in the address."""

    focus: str = ""
    depth: int | None = None  # None: as far as it goes
    text: str = ""
    opened: frozenset[str] = frozenset()
    is_folded: bool = True

    @classmethod
    def read(cls, query: QueryDict) -> "Question":
        return cls(
            focus=query.get("focus", "").strip()[:80],
            depth=read_depth(query.get("depth", "")),
            text=query.get("q", "").strip()[:200],
            opened=frozenset(query.getlist("open")[:MOST_OPENED]),
            is_folded=query.get("fold", "1") != "0",
        )

    def write(self, **changes: Any) -> str:
        """The address of the page with something else asked for."""
        asked = replace(self, **changes)
        pairs: list[tuple[str, str]] = []
        for name, value in (("focus", asked.focus), ("depth", asked.depth), ("q", asked.text)):
            if value:
                pairs.append((name, str(value)))
        pairs += [("open", each) for each in sorted(asked.opened)]
        if not asked.is_folded:
            pairs.append(("fold", "0"))
        return f"{reverse('lineage')}?{urlencode(pairs)}"


def read_depth(text: str) -> int | None:
    if text in ("", "all"):
        return None
    if not text.isdecimal() or len(text) > 3 or int(text) == 0:
        raise UserError(f"depth is {text[:40]!r}: send 1 or more, or leave it out.", field="depth")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is shown: everything that was asked for, folded."""

    question: Question
    folded: Folded
    hits: Sequence[Node]
    num_all: int  # nodes before anything was folded
    left_out: Sequence[str]

    @property
    def graph(self) -> Graph:
        return self.folded.graph


def answer(actor: Actor, question: Question) -> Answer:
    """In the current project, or in the one of theirs that what is looked at belongs to."""
    project_id, around = actor.project.pk, None
    if question.focus:
        found, around = find_anchor(list_projects(actor), question.focus)
        project_id = found or project_id
    return answer_in(project_id, question, around=around)


def answer_in(project_id: str, question: Question, *, around: Any = None) -> Answer:
    reading = read_graph(project_id, around=around)
    graph = reading.graph
    if question.focus:
        if question.focus not in graph.nodes:
            raise NotFound(
                f"{question.focus[:60]} is not in the lineage: it is deleted or passing."
            )
        graph = focus(graph, question.focus, depth=question.depth)
    found = search(graph, question.text) if question.text else []
    hits = [graph.nodes[each] for each in found]
    standing = {question.focus, *found[:MOST_HITS]}
    folded = Folded(graph=graph, opened={})
    if question.is_folded:
        folded = fold(graph, opened=question.opened, standing=standing)
    return Answer(
        question=question,
        folded=folded,
        hits=hits,
        num_all=len(graph.nodes),
        left_out=reading.left_out,
    )


def list_projects(actor: Actor) -> Any:
    if actor.is_key:
        return Project.objects.filter(pk=actor.project.pk)
    return Project.objects.filter(memberships__user=actor.user)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    layout: Layout
    drawn: Sequence[Drawn]


def make_picture(answered: Answer) -> Picture:
    # Of a whole project the second sources are told: their lines would cross everything.
    is_focused = bool(answered.question.focus)
    layout = lay_out(answered.graph, most=MOST_DRAWN, with_sides=is_focused)
    drawn = draw(
        layout,
        current=answered.question.focus,
        hits={node.id for node in answered.hits},
        opened=answered.folded.opened,
    )
    return Picture(layout=layout, drawn=drawn)


def describe_bounds(answered: Answer, picture: Picture | None = None) -> str:
    """What is left out, in a sentence; empty where nothing is."""
    said = []
    if answered.left_out:
        where = "around this one" if answered.question.focus else "that are newest"
        said.append(
            f"Not all {' and '.join(answered.left_out)} were read: {MOST_RUNS:,} runs {where}, and"
            f" {MOST_ROWS:,} of any other kind. Focus on something to see around it."
        )
    if picture and picture.layout.num_hidden:
        said.append(
            f"{len(picture.drawn):,} of {len(answered.graph.nodes):,} nodes are drawn: focus on"
            " one, or search."
        )
    return " ".join(said)


def write_links(question: Question, drawn: Drawn) -> Mapping[str, str]:
    """Where a node leads: its page or what it folds; and how to look at it alone."""
    node = drawn.node
    if node.fold:
        opens = question.write(opened=question.opened | {node.fold})
        return {"page": opens, "focus": "", "close": ""}
    closed = question.opened.difference(drawn.closes)
    return {
        "page": node.url,
        "focus": question.write(focus=node.id, text=""),
        "close": question.write(opened=closed) if drawn.closes else "",
    }
