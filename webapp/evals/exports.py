"""A comparison to keep or send: every answer as CSV, or one HTML file that opens from a disk."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from time import monotonic
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.template.loader import render_to_string
from django.utils.timezone import now
from django.views.decorators.http import require_GET

from webapp.accounts.middleware import ActorRequest
from webapp.core.streams import StreamedResponse, stream_csv
from webapp.core.tables import guard_cell
from webapp.core.templatetags.hone import exact, size
from webapp.evals.answers import name_graders
from webapp.evals.changes import list_changes
from webapp.evals.choice import Choice, read_choice
from webapp.evals.compare_views import Column, list_judge_notes, make_columns, offer_facets, relate
from webapp.evals.comparison import Comparison, name_change, sum_up
from webapp.evals.items import ItemRow, list_rows, select_rows
from webapp.evals.models import EvalResult, Evaluation
from webapp.evals.slices import Cut, cut_comparisons
from webapp.evals.texts import AnswerDiff, diff_answers
from webapp.evals.views import show_item

MOST_BYTES = 4 * 2**20  # of prompts and answers in the HTML file
SECONDS = 20.0  # for all differences in it, and as long for all slices
SECONDS_A_PAIR = 0.5

HEAD = (
    *("item", "row", "prompt", "target", "letter", "weights", "evaluation", "sample"),
    *("score", "item_score", "change", "answer", "num_tokens", "stop_reason", "error", "digest"),
    "judge_digest",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """An item that changed, with what changed in each answer that did."""

    number: int
    row: ItemRow
    item: dict[str, Any]
    diffs: Sequence[tuple[Column, float, float, AnswerDiff]]  # with both scores


@login_required
@require_GET
def download_csv(request: ActorRequest) -> StreamedResponse:
    """A line an answer, of every item, whether it could be compared or not."""
    choice = read_choice(request.actor, request.GET)
    comparisons = choice.compare()
    lines = (map(guard_cell, values) for values in list_lines(choice, comparisons))
    return stream_csv(chain([HEAD], lines), name_file(choice, "csv"))


def list_lines(choice: Choice, comparisons: Sequence[Comparison]) -> Iterator[list[Any]]:
    """Of an item all answers together: the baseline's first."""
    columns = {column.evaluation.pk: column for column in make_columns(comparisons)}
    samples = {
        (each.second.pk, sample.index): sample for each in comparisons for sample in each.samples
    }
    scores = {
        (comparisons[0].first.pk, sample.index): sample.first_score
        for each in comparisons
        for sample in each.samples
    } | {key: sample.second_score for key, sample in samples.items()}
    grader, items = comparisons[0].grader, choice.baseline.suite.items
    rows = EvalResult.objects.filter(evaluation__in=choice.evaluations)
    for index, results in _by_item(rows.order_by("index", "evaluation", "sample").iterator()):
        item = show_item(items[index])
        for result in sorted(results, key=lambda each: columns[each.evaluation_id].letter):
            column, key = columns[result.evaluation_id], (result.evaluation_id, index)
            sample = samples.get(key)
            change = name_change(sample.first_score, sample.second_score) if sample else ""
            yield [
                *(index + 1, item["row"], item["prompt"], item["target"], column.letter),
                *(column.name, column.evaluation.pk, result.sample, result.scores.get(grader)),
                *(scores.get(key), change, result.completion, result.num_tokens),
                *(result.stop_reason, result.error, result.digest),
                result.judges.get(grader, ""),
            ]


def _by_item(results: Iterator[EvalResult]) -> Iterator[tuple[int, list[EvalResult]]]:
    group: list[EvalResult] = []
    for result in results:
        if group and group[0].index != result.index:
            yield group[0].index, group
            group = []
        group.append(result)
    if group:
        yield group[0].index, group


@login_required
@require_GET
def download_html(request: ActorRequest) -> HttpResponse:
    """Verdicts, flips with their differences, slices, settings and digests; nothing outside it."""
    choice = read_choice(request.actor, request.GET)
    response = HttpResponse(write_html(choice), content_type="text/html; charset=utf-8")
    named = f'attachment; filename="{name_file(choice, "html")}"'
    response.headers["Content-Disposition"] = named
    return response


def write_html(choice: Choice) -> str:
    comparisons = choice.compare()
    columns = make_columns(comparisons)
    suite = choice.baseline.suite
    rows = select_rows(list_rows(comparisons), "flips")
    flips = list(take_flips(rows, columns))
    facets = offer_facets(comparisons)
    cuts = list(take_cuts(comparisons, facets))
    return render_to_string(
        "evals/export.html",
        {
            "suite": suite,
            "verdict": sum_up(comparisons),
            "judges": list_judge_notes(comparisons),
            "columns": columns,
            "comparisons": comparisons,
            "grader": comparisons[0].grader,
            "graders": name_graders(suite),
            "left_out": max(each.num_left_out for each in comparisons),
            "num_flips": len(rows),
            "flips": flips,
            "limit": size(MOST_BYTES),
            "cuts": cuts,
            "uncut": facets[len(cuts) :],
            "relations": relate(columns),
            "changes": list_changes(*choice.evaluations),
            "settings": list_settings(columns),
            "written_at": now(),
        },
    )


def take_cuts(comparisons: Sequence[Comparison], facets: Sequence[str]) -> Iterator[Cut]:
    """In order, until the time is over: each slice of parts of a point is resampled."""
    deadline = monotonic() + SECONDS
    for name in facets:
        if monotonic() > deadline:
            return
        yield cut_comparisons(comparisons, name)


def list_settings(columns: Sequence[Column]) -> list[tuple[str, str, str]]:
    """What it is, in words, and exactly."""
    suite = columns[0].evaluation.suite
    settings = [
        ("Suite", f"{suite.name}, {suite.num_items:,} items", suite.digest),
        ("Graders", ", ".join(name_graders(suite)), write_json(suite.graders)),
        ("Sampling", "as asked", write_json(suite.sampling)),
    ]
    if suite.dataset_version is not None:
        version = suite.dataset_version
        settings.insert(1, ("Rows of", str(version), version.digest))
    for column in columns:
        evaluation = column.evaluation
        words = f"{column.name}, evaluation {evaluation.pk} of {exact(evaluation.ended_at)}"
        settings.append((column.letter, words, write_json(evaluation.served)))
    return settings


def write_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def take_flips(rows: Sequence[ItemRow], columns: Sequence[Column]) -> Iterator[Flip]:
    """In order, until the file is full; whoever reads it is told how many were left out."""
    num_bytes, deadline = 0, monotonic() + SECONDS
    evaluations = [column.evaluation for column in columns]
    for row in rows:
        answers = read_first_answers(evaluations, row.index)
        item = show_item(row.item)
        num_bytes += sum(len(each.completion) for each in answers.values())
        num_bytes += sum(len(str(each["content"])) for each in row.item["messages"])
        if num_bytes > MOST_BYTES:
            return
        before = answers[evaluations[0].pk]
        diffs = [
            (
                column,
                sample.first_score,
                sample.second_score,
                diff_answers(before, answers[column.evaluation.pk], seconds=_remaining(deadline)),
            )
            for column, sample in zip(columns[1:], row.samples, strict=True)
            if sample is not None and sample.change != "same"
        ]
        yield Flip(number=row.index + 1, row=row, item=item, diffs=diffs)


def read_first_answers(evaluations: Sequence[Evaluation], index: int) -> dict[str, EvalResult]:
    """The first graded sample of each, by evaluation."""
    rows = EvalResult.objects.filter(evaluation__in=evaluations, index=index, error="")
    return {row.evaluation_id: row for row in rows.order_by("-sample")}


def _remaining(deadline: float) -> float:
    return max(0.0, min(SECONDS_A_PAIR, deadline - monotonic()))


def name_file(choice: Choice, ending: str) -> str:
    return f"compare-{choice.baseline.suite_id}-{choice.baseline.pk}.{ending}"
