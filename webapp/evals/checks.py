"""What a suite must be before it is made: where its items come from, graders and sampling."""

from collections.abc import Mapping, Sequence
from typing import Any

from training.errors import InvalidInput
from training.recipes.fields import Check, check_fields, whole
from training.recipes.graders import check_graders as check_specs
from training.recipes.graders import text
from training.recipes.lm_task import LmTask, read_rows, read_task
from training.recipes.lm_task_rows import fill_in
from webapp.core.errors import UserError
from webapp.datasets.models import DatasetVersion
from webapp.deployments.services import check_params

MAX_ITEMS = 2000
MAX_SAMPLES = 64  # of one item
MAX_ROWS_TEXT = 8_000_000  # characters of a task's rows
# Greedy: the same weights give the same answers, so a difference is the weights'.
SAMPLING = {"max_tokens": 256, "temperature": 0.0, "seed": 0}

BUILT_IN = ("bfcl_simple", "one_digit_sums")


def check_config(name: str, value: Any) -> dict[str, Any]:
    """Settings of a task: a handful of plain values."""
    if not isinstance(value, dict) or len(value) > 40 or len(str(value)) > 4000:
        raise InvalidInput(f"{name} is not an object with a task's settings")
    return value


def check_items(name: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_ITEMS:
        raise InvalidInput(f"{name} is a list of 1 to {MAX_ITEMS} items")
    for number, item in enumerate(value):
        if not isinstance(item, dict):
            raise InvalidInput(f"{name}[{number}] is not an object with messages and target")
    return value


SOURCES: dict[str, dict[str, Check]] = {
    "reasoning_gym": {
        "task": text(60),
        "seed": whole(0, 2**31 - 1),
        "size": whole(1, MAX_ITEMS),
        "config": check_config,
    },
    "built_in": {"name": text(60)},
    "items": {"items": check_items},
}


REQUIRED = {"reasoning_gym": {"task"}, "built_in": {"name"}, "items": {"items"}}


def check_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Where the items come from, if not from a dataset: {"source", ...its settings}."""
    source = spec.get("source")
    if not isinstance(source, str) or source not in SOURCES:
        raise UserError(
            f"source is {source!r:.60}; it is one of {', '.join(SOURCES)}.", field="source"
        )
    own = {key: value for key, value in spec.items() if key != "source"}
    try:
        checked = check_fields(own, SOURCES[source], name=f"the source {source}")
    except InvalidInput as error:
        raise UserError(f"{capitalize(str(error))}.", field="source") from error
    if source == "built_in" and checked.get("name") not in BUILT_IN:
        raise UserError(f"The built-in suites are {', '.join(BUILT_IN)}.", field="source")
    if missing := REQUIRED[source] - checked.keys():
        raise UserError(f"The source {source} needs its {min(missing)}.", field="source")
    return {"source": source, **checked}


def check_version(version: DatasetVersion | None, spec: Mapping[str, Any] | None) -> None:
    if (version is None) == (not spec):
        raise UserError(
            "A suite takes its items from a dataset version or from another source: give one.",
            field="dataset_version",
        )
    if version is not None and version.status != DatasetVersion.Status.READY:
        raise UserError(f"{version} is not ready.", field="dataset_version")


def check_selection(selection: Mapping[str, Any]) -> None:
    share, limit = selection["held_out_share"], selection["limit"]
    if not 0 < share <= 1:
        raise UserError(
            f"held_out_share is {share!r}; it lies above 0 and up to 1 (every row).",
            field="held_out_share",
        )
    if (by := selection.get("held_out_by", "row")) not in ("row", "prompt"):
        raise UserError(f"held_out_by is {by!r:.60}; it is row or prompt.", field="held_out_by")
    if limit is not None and not 1 <= limit <= MAX_ITEMS:
        raise UserError(f"limit is {limit!r}; it lies between 1 and {MAX_ITEMS}.", field="limit")


def check_graders(graders: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if not graders:
        raise UserError("A suite needs a grader; the first one is the score.", field="graders")
    try:
        return check_specs(graders)
    except InvalidInput as error:
        raise UserError(f"{capitalize(str(error))}.", field="graders") from error


def capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]


def check_sampling(sampling: Mapping[str, Any] | None) -> dict[str, Any]:
    """With `num_samples` of every item, and `pass_at`: the k of which pass@k is reported."""
    wanted = {**SAMPLING, **(sampling or {})}
    num_samples, pass_at = wanted.pop("num_samples", None), wanted.pop("pass_at", None)
    checked = check_params(wanted)
    count = check_count(1 if num_samples is None else num_samples)
    if count == 1:
        return checked
    return checked | {"num_samples": count, "pass_at": choose_pass_at(pass_at, count)}


def check_count(value: Any) -> int:
    try:
        return int(whole(1, MAX_SAMPLES)("num_samples", value))
    except InvalidInput as error:
        raise UserError(f"{error}.", field="num_samples") from error


def choose_pass_at(pass_at: Any, count: int) -> list[int]:
    """Without a wish: 1, 2, 4 ... and all."""
    if not pass_at:
        return sorted({2**power for power in range(7) if 2**power < count} | {count})
    is_list = isinstance(pass_at, list)
    if not is_list or not all(type(k) is int and 1 <= k <= count for k in pass_at):
        raise UserError(
            f"pass_at is {pass_at!r:.60}; it is a list of whole numbers from 1 to num_samples.",
            field="pass_at",
        )
    return sorted(set(pass_at))


def check_task(task: str, rows: str) -> LmTask:
    """A task of lm-eval; its rows too, where they came with it."""
    try:
        found = read_task(task)
    except InvalidInput as error:
        raise UserError(f"{capitalize(str(error))}.", field="task") from error
    if len(rows) > MAX_ROWS_TEXT:
        raise UserError(f"The rows have more than {MAX_ROWS_TEXT:,} characters.", field="rows")
    try:
        if rows:
            fill_in(task, read_rows(rows))
    except InvalidInput as error:
        raise UserError(f"{capitalize(str(error))}.", field="rows") from error
    return found
