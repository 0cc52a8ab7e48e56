"""The page that compares evaluations of one suite: the verdict, the flips, and where from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from webapp.accounts.middleware import ActorRequest
from webapp.core.errors import NotFound, UserError
from webapp.evals.answers import name_graders
from webapp.evals.changes import list_changes
from webapp.evals.choice import LETTERS, Choice, read_choice, read_ids
from webapp.evals.comparison import MOST, Comparison, sum_up
from webapp.evals.items import fill_rows, list_rows, select_rows
from webapp.evals.models import Evaluation
from webapp.evals.naming import name_subject
from webapp.evals.relations import describe_relation
from webapp.evals.slices import Cut, cut_comparisons, list_facets
from webapp.evals.views import ROWS_A_PAGE, Line, make_line, read_evaluations, show_item

OFFERED = 200
FILTERS = (
    ("flips", "Changed"),
    ("worse", "Worse"),
    ("better", "Better"),
    ("same", "Same"),
    ("all", "All"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One of the compared; the baseline has no comparison."""

    letter: str
    evaluation: Evaluation
    name: str
    score: float
    comparison: Comparison | None = None
    without: str = ""  # the ids of the others


@login_required
@require_GET
def show_comparison(request: ActorRequest) -> HttpResponse:
    """Choose some, or read what the chosen ones say."""
    groups = _offer(request)
    context: dict[str, Any] = {"chosen": read_ids(request.GET), "most": MOST}
    if context["chosen"]:
        try:
            context |= _describe(request, read_choice(request.actor, request.GET), groups)
        except NotFound:
            raise
        except UserError as error:
            context["error"] = error.message
    elif "baseline" in request.GET:
        context["error"] = "Tick the evaluations to compare with the baseline."
    return render(request, "evals/compare.html", context | {"groups": groups})


def _offer(request: ActorRequest) -> dict[str, list[Line]]:
    """What has finished, by suite: only evaluations of one suite can be compared."""
    done = read_evaluations(request.actor).filter(
        project=request.actor.project, status=Evaluation.Status.DONE
    )
    groups: dict[str, list[Line]] = {}
    for evaluation in done[:OFFERED]:
        groups.setdefault(evaluation.suite.name, []).append(make_line(evaluation))
    return groups


def _describe(
    request: ActorRequest, choice: Choice, groups: dict[str, list[Line]]
) -> dict[str, Any]:
    comparisons = choice.compare()
    rows = list_rows(comparisons)
    show = request.GET.get("show", "flips" if any(each.flips for each in comparisons) else "all")
    page = Paginator(select_rows(rows, show), ROWS_A_PAGE).get_page(request.GET.get("page"))
    columns = make_columns(comparisons)
    suite, here = choice.baseline.suite, {each.pk for each in choice.evaluations}
    return {
        "choice": choice,
        "suite": suite,
        "verdict": sum_up(comparisons),
        "columns": columns,
        "comparisons": comparisons,
        "others": [each for each in groups.get(suite.name, []) if each.evaluation.pk not in here],
        "can_remove": len(here) > 2,
        "left_out": max(each.num_left_out for each in comparisons),
        "graders": name_graders(suite),
        "grader": comparisons[0].grader,
        "changes": list_changes(*choice.evaluations),
        "relations": relate(columns),
        "filters": FILTERS,
        "show": show,
        "page": page,
        "rows": [(row, show_item(row.item), cells) for row, cells in fill_rows(list(page))],
        "facets": offer_facets(comparisons),
        "judges": list_judge_notes(comparisons),
        "cut": cut_by(comparisons, request.GET.get("slice", "")),
    }


def make_columns(comparisons: Sequence[Comparison]) -> list[Column]:
    first = comparisons[0].first
    everyone = [first.pk, *(each.second.pk for each in comparisons)]
    baseline = Column(
        letter=LETTERS[0],
        evaluation=first,
        name=name_subject(first),
        score=max(comparisons, key=lambda each: len(each.samples)).first_mean,
    )
    others = [
        Column(
            letter=letter,
            evaluation=each.second,
            name=name_subject(each.second),
            score=each.second_mean,
            comparison=each,
            without=",".join(pk for pk in everyone if pk != each.second.pk),
        )
        for letter, each in zip(LETTERS[1:], comparisons, strict=False)
    ]
    return [baseline, *others]


def relate(columns: Sequence[Column]) -> list[tuple[Column, list[str]]]:
    baseline, *others = columns
    return [(each, describe_relation(baseline.evaluation, each.evaluation)) for each in others]


def list_judge_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """Each once."""
    return [*dict.fromkeys(each.judges.text for each in comparisons if each.judges.text)]


def offer_facets(comparisons: Sequence[Comparison]) -> list[str]:
    """None where different judges gave the scores: where a difference comes from is theirs too."""
    if not all(each.is_paired for each in comparisons):
        return []
    return list_facets(comparisons[0].first.suite.items)


def cut_by(comparisons: Sequence[Comparison], facet: str) -> Cut | None:
    """None: not asked for, or nothing that these items can be cut by."""
    if facet not in offer_facets(comparisons):
        return None
    return cut_comparisons(comparisons, facet)
