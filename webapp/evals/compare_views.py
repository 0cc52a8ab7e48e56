"""The page that compares two evaluations of one suite, sample by sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from webapp.accounts.middleware import ActorRequest
from webapp.core.diffs import Piece, diff_texts, spare_unlike
from webapp.core.errors import NotFound, UserError
from webapp.core.templatetags.hone import percent
from webapp.evals.changes import list_changes
from webapp.evals.comparison import ComparedSample, Comparison, compare
from webapp.evals.models import Evaluation
from webapp.evals.naming import name_subject
from webapp.evals.views import ROWS_A_PAGE, find_evaluation, make_line, read_evaluations, show_item

OFFERED = 200
FILTERS = (
    ("flips", "Changed"),
    ("worse", "Worse"),
    ("better", "Better"),
    ("same", "Same"),
    ("all", "All"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A sample with its two answers in pieces."""

    number: int
    sample: ComparedSample
    item: dict[str, Any]
    first: Sequence[Piece]
    second: Sequence[Piece]


@login_required
@require_GET
def show_comparison(request: ActorRequest) -> HttpResponse:
    """Choose two, or read what two chosen ones say."""
    chosen = [request.GET.get(side, "") for side in ("a", "b")]
    context = {
        "chosen": chosen,
        "sides": [("a", "A", chosen[0]), ("b", "B", chosen[1])],
        "groups": _offer(request),
    }
    if all(chosen):
        first, second = [find_evaluation(request.actor, each) for each in chosen]
        try:
            comparison = compare(first, second, grader=request.GET.get("grader", ""))
            context |= _describe(request, comparison)
        except NotFound:
            raise
        except UserError as error:
            context["error"] = error.message
    return render(request, "evals/compare.html", context)


def _offer(request: ActorRequest) -> dict[str, list[Any]]:
    """What has finished, by suite: only evaluations of one suite can be compared."""
    done = read_evaluations(request.actor).filter(
        project=request.actor.project, status=Evaluation.Status.DONE
    )
    groups: dict[str, list[Any]] = {}
    for evaluation in done[:OFFERED]:
        groups.setdefault(evaluation.suite.name, []).append(make_line(evaluation))
    return groups


def _describe(request: ActorRequest, comparison: Comparison) -> dict[str, Any]:
    show = request.GET.get("show", "flips" if comparison.flips else "all")
    page = Paginator(select_samples(comparison, show), ROWS_A_PAGE).get_page(
        request.GET.get("page")
    )
    return {
        "comparison": comparison,
        "names": [name_subject(comparison.first), name_subject(comparison.second)],
        "graders": [grader["name"] for grader in comparison.first.suite.graders],
        "changes": list_changes(comparison.first, comparison.second),
        "stats": describe_figures(comparison),
        "filters": FILTERS,
        "show": show,
        "page": page,
        "rows": [make_row(sample) for sample in page],
    }


def describe_figures(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Label, value and note of the stat cards."""
    count = len(comparison.samples)
    grader = comparison.grader.replace("_", " ")
    p_value = comparison.p_value
    return [
        ("A", percent(comparison.first_mean), name_subject(comparison.first)),
        ("B", percent(comparison.second_mean), name_subject(comparison.second)),
        (
            "Difference",
            f"{comparison.difference:+.1f} points",
            f"95 % between {comparison.low:+.1f} and {comparison.high:+.1f}",
        ),
        ("Better, worse", f"{comparison.wins}, {comparison.losses}", f"of {count}, by {grader}"),
        (
            "p",
            "< 0.0001" if p_value < 0.0001 else f"{p_value:.2g}",
            "significant" if comparison.is_significant else "may be chance",
        ),
    ]


def select_samples(comparison: Comparison, show: str) -> Sequence[ComparedSample]:
    """Flips first, regressions before them: the order of the comparison itself."""
    if show == "flips":
        return comparison.flips
    if show in ("worse", "better", "same"):
        return [sample for sample in comparison.samples if sample.change == show]
    return comparison.samples


def make_row(sample: ComparedSample) -> Row:
    first, second = diff_texts(sample.first.completion, sample.second.completion)
    return Row(
        number=sample.index + 1,
        sample=sample,
        item=show_item(sample.item),
        first=spare_unlike(first),
        second=spare_unlike(second),
    )
