"""Builds suites from the rows that a run holds out, and sends an evaluation's calls."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from django.conf import settings

from training.data.batches import draw, split_held_out
from training.data.rows import Row
from training.data.validate import read_normalised
from training.errors import InvalidInput
from webapp.core.errors import UserError
from webapp.evals.models import EvalSuite, Evaluation
from webapp.evals.services import begin_evaluation, mark_built, mark_failed, mark_suite_failed
from workers.answers import choose_column, grade_one
from workers.claims import MAX_ATTEMPTS, claim

MOST_ITEMS = 2000


def build_suite(suite_id: str) -> None:
    with claim(suite_id) as attempt:
        suite = EvalSuite.objects.select_related("dataset_version").get(pk=suite_id)
        if not attempt or suite.status != EvalSuite.Status.BUILDING:
            return
        if attempt > MAX_ATTEMPTS:
            mark_suite_failed(suite, f"The process that built it ended {MAX_ATTEMPTS} times.")
            return
        _build(suite)


def _build(suite: EvalSuite) -> None:
    items = [make_item(row, suite.graders) for row in choose_rows(suite)]
    for item in items:
        check_item(item, suite.graders)
    mark_built(suite, items)


def choose_rows(suite: EvalSuite) -> list[Row]:
    """Held out by a run with this share and seed. Equal rows count once; a part is drawn by hash,
    so that it does not depend on how the file was sorted.
    """
    if suite.dataset_version is None:
        raise InvalidInput("the suite has no dataset version to take its items from")
    share, seed = suite.selection["held_out_share"], suite.selection["seed"]
    rows = read_normalised(settings.HONE_HOME / suite.dataset_version.rows_path)
    _, held_out = split_held_out(rows, share=share, seed=seed)
    answered = [row for row in held_out if row.messages[-1]["role"] == "assistant"]
    unique = list({row.key: row for row in reversed(answered)}.values())
    if not unique:
        raise InvalidInput(
            f"No row with an answer is held out at a share of {share:g}: raise held_out_share."
        )
    unique.sort(key=lambda row: draw(row.key, seed=seed, purpose="suite"))
    chosen = unique[: suite.selection.get("limit") or MOST_ITEMS]
    return sorted(chosen, key=lambda row: row.number)


def make_item(row: Row, graders: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last answer is the target, and what is before it the prompt."""
    item: dict[str, Any] = {
        "row": row.number,
        "messages": [dict(message) for message in row.messages[:-1]],
        "target": row.messages[-1]["content"],
        "columns": {column: read_column(row, column) for column in name_columns(graders)},
    }
    tools = row.metadata.get("tools")
    return item | ({"tools": tools} if isinstance(tools, list) else {})


def name_columns(graders: Sequence[Mapping[str, Any]]) -> set[str]:
    return {choose_column(grader) for grader in graders} - {""}


def read_column(row: Row, column: str) -> str:
    if column not in row.metadata:
        raise InvalidInput(
            f"Row {row.number} has no column {column}, which a grader compares with: add it, or "
            "choose another grader."
        )
    value = row.metadata[column]
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def check_item(item: Mapping[str, Any], graders: Sequence[Mapping[str, Any]]) -> None:
    """A suite that cannot be graded is refused now, not after all its answers were made."""
    for grader in graders:
        try:
            grade_one(grader, item["target"], item)
        except InvalidInput as error:
            raise InvalidInput(f"Row {item['row']}, grader {grader['name']}: {error}") from error


def fail_suite(suite_id: str, error: Exception) -> None:
    mark_suite_failed(EvalSuite.objects.get(pk=suite_id), say(error))


def evaluate(evaluation_id: str) -> None:
    """Every item's call is sent, once; the sampler grades the answers and ends the evaluation."""
    begin_evaluation(Evaluation.objects.select_related("suite", "project").get(pk=evaluation_id))


def fail(evaluation_id: str, error: Exception) -> None:
    mark_failed(Evaluation.objects.get(pk=evaluation_id), say(error))


def say(error: Exception) -> str:
    if isinstance(error, InvalidInput | UserError):
        return str(error)
    return f"Internal error: {error!r:.200}"
