"""The page of one item's answers of two evaluations in full: what only one of them has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from webapp.accounts.middleware import ActorRequest
from webapp.core.counts import read_count
from webapp.core.errors import NotFound
from webapp.evals.choice import read_choice
from webapp.evals.compare_views import Column, make_columns
from webapp.evals.items import ItemRow, list_rows
from webapp.evals.models import EvalResult
from webapp.evals.texts import diff_answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two: its samples of the item, and the one that is read."""

    parameter: str  # of the address, that chooses the sample
    column: Column
    results: Sequence[EvalResult]
    chosen: EvalResult
    score: float | None


@login_required
@require_GET
def show_answers(request: ActorRequest) -> HttpResponse:
    choice = read_choice(request.actor, request.GET)
    comparisons = choice.compare()
    grader = comparisons[0].grader
    columns = make_columns(comparisons)
    row, previous, following = find_row(list_rows(comparisons), request.GET.get("item", ""))
    other = next(
        (each for each in columns[1:] if each.evaluation.pk == request.GET.get("with")), columns[1]
    )
    sides = [
        make_side(column, row.index, grader, parameter, request.GET.get(parameter, ""))
        for column, parameter in ((columns[0], "x"), (other, "y"))
    ]
    context: dict[str, Any] = {
        "choice": choice,
        "suite": choice.baseline.suite,
        "columns": columns[1:],
        "other": other,
        "row": row,
        "number": row.index + 1,
        "previous": previous,
        "following": following,
        "grader": grader,
        "sides": sides,
        "answer": diff_answers(sides[0].chosen, sides[1].chosen),
    }
    return render(request, "evals/answers.html", context)


def find_row(rows: Sequence[ItemRow], item: str) -> tuple[ItemRow, ItemRow | None, ItemRow | None]:
    """With its neighbours, in the order of the comparison's page."""
    index = read_count(item, "item")
    place = next((place for place, row in enumerate(rows) if row.index == index), None)
    if place is None:
        raise NotFound(f"There is no item {index + 1} that these evaluations both answered.")
    following = rows[place + 1] if place + 1 < len(rows) else None
    return rows[place], rows[place - 1] if place else None, following


def make_side(column: Column, index: int, grader: str, parameter: str, sample: str) -> Side:
    """The sample that is asked for, else the first."""
    results = list(column.evaluation.results.filter(index=index))
    if not results:
        raise NotFound(f"{column.name} has no answer to item {index + 1}.")
    wanted = [result for result in results if str(result.sample) == sample]
    chosen = (wanted or results)[0]
    return Side(
        parameter=parameter,
        column=column,
        results=results,
        chosen=chosen,
        score=chosen.scores.get(grader),
    )
