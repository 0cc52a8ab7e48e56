"""The Data tab of a run: its rows by what they cost, and which it never learned or forgot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from django.conf import settings
from django.core.paginator import Paginator

from webapp.datasets.models import DatasetVersion
from webapp.runs.models import Run
from webapp.runs.row_losses import (
    Trajectory,
    find_usual,
    read_trajectories,
)

ROWS_A_PAGE = 25
MAX_CHARACTERS = 240
WHICH = ("all", "never_learnt", "rose")
SORTS = {
    "row": lambda each: each.row,
    "first": lambda each: each.first,
    "last": lambda each: each.last,
    "change": lambda each: each.change,
    "visits": lambda each: each.visits,
}
HEADINGS = (
    ("row", "Row"),
    ("visits", "Visits"),
    ("first", "First loss"),
    ("last", "Last loss"),
    ("change", "Change"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """A column that sorts: where it leads, and how it is sorted now."""

    label: str
    sort: str
    aria: str


def read_data(run: Run, query: Mapping[str, str]) -> dict[str, Any]:
    trajectories = read_trajectories(run)
    groups = {name: choose(trajectories, name) for name in WHICH}
    which = query.get("rows", "")
    which = which if which in WHICH else "all"
    sort = query.get("sort", "-last")
    column = sort.removeprefix("-")
    if column not in SORTS:
        sort, column = "-last", "last"
    rows = sorted(groups[which], key=SORTS[column], reverse=sort.startswith("-"))
    page = Paginator(rows, ROWS_A_PAGE).get_page(query.get("page"))
    return {
        "which": which,
        "groups": [(name, len(groups[name])) for name in WHICH],
        "headings": [make_heading(name, label, sort) for name, label in HEADINGS],
        "sort": sort,
        "page": page,
        "rows": add_texts(run.dataset_version, list(page)),
    }


def choose(trajectories: Sequence[Trajectory], which: str) -> list[Trajectory]:
    if which == "never_learnt":
        usual = find_usual(trajectories)
        return [each for each in trajectories if each.is_unlearned(usual)]
    return [each for each in trajectories if which == "all" or each.has_risen]


def make_heading(name: str, label: str, sort: str) -> Heading:
    is_sorted = sort.removeprefix("-") == name
    is_falling = sort.startswith("-")
    return Heading(
        label=label,
        sort=name if is_sorted and is_falling else f"-{name}",
        aria=("descending" if is_falling else "ascending") if is_sorted else "",
    )


def add_texts(
    version: DatasetVersion | None, rows: Sequence[Trajectory]
) -> list[tuple[Trajectory, str]]:
    texts = read_texts(version, {each.row for each in rows}) if version and rows else {}
    return [(each, texts.get(each.row, "")) for each in rows]


def read_texts(version: DatasetVersion, numbers: set[int]) -> dict[int, str]:
    """Lines of the version's file, read as far as the last one that is wanted."""
    path = Path(settings.HONE_HOME) / version.rows_path
    if not version.rows_path or not path.is_file():
        return {}
    found: dict[int, str] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number in numbers:
                found[number] = show_row(orjson.loads(line))
                if len(found) == len(numbers):
                    break
    return found


def show_row(columns: Mapping[str, Any]) -> str:
    messages = [*columns.get("messages", [])]
    for side in ("chosen", "rejected"):
        if isinstance(columns.get(side), list):
            messages += columns[side]
    text = " / ".join(str(message["content"]) for message in messages) or columns.get("text", "")
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} ..."
