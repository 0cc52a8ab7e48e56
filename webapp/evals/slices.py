"""A comparison cut by what its items are: where the difference comes from."""

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from webapp.evals.comparison import SIGNIFICANT, ComparedSample, Comparison, name_change
from webapp.evals.paired import adjust_holm, compare_scores, estimate_interval

MOST_VALUES = 12  # of a column: one with more tells items apart, and not kinds of them
MOST_NUMBER = 1e300
PARTS = 4  # of numbers: about as many items in each
NUMBER = re.compile(r"\s*[-+]?[\d,]*\.?\d+(e[-+]?\d+)?\s*%?\s*", re.IGNORECASE)
LONG_TARGET = 80  # characters: more than an answer of a line

Item = Mapping[str, Any]
Reader = Callable[[Item], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The items of one slice under one comparison; points as in `Comparison`."""

    count: int
    wins: int
    losses: int
    first_mean: float
    second_mean: float
    difference: float
    low: float
    high: float
    p_value: float
    adjusted: float = 1.0

    @property
    def is_significant(self) -> bool:
        return self.adjusted < SIGNIFICANT

    @property
    def outcome(self) -> str:
        if not self.wins + self.losses:
            return "same"
        return name_change(0, self.difference) if self.is_significant else "chance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """`parts` stands in the order of the comparisons; None: no pair lies in it."""

    name: str
    num_items: int
    parts: Sequence[Part | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The slices by one facet. `family`: how many tests the p-values are adjusted for."""

    facet: str
    slices: Sequence[Slice]
    family: int


def list_facets(items: Sequence[Item]) -> list[str]:
    """What the items can be cut by: only what tells some of them from others."""
    readers = _make_readers(items)
    return [name for name, reader in readers.items() if len(_list_values(items, reader)) > 1]


def cut_comparisons(comparisons: Sequence[Comparison], facet: str) -> Cut:
    """By one of `list_facets`."""
    items = comparisons[0].first.suite.items
    reader = _make_readers(items)[facet]
    names = {index: reader(item) for index, item in enumerate(items)}
    slices = [
        Slice(
            name=name,
            num_items=sum(each == name for each in names.values()),
            parts=[
                _measure([sample for sample in each.samples if names[sample.index] == name])
                for each in comparisons
            ],
        )
        for name in _list_values(items, reader)
    ]
    return _adjust(facet, slices)


def _measure(samples: Sequence[ComparedSample]) -> Part | None:
    if not samples:
        return None
    befores = tuple(sample.first_score for sample in samples)
    afters = tuple(sample.second_score for sample in samples)
    changes = [sample.change for sample in samples]
    low, high = estimate_interval(befores, afters)
    return Part(
        count=len(samples),
        wins=changes.count("better"),
        losses=changes.count("worse"),
        first_mean=sum(befores) / len(samples),
        second_mean=sum(afters) / len(samples),
        difference=100 * (sum(afters) - sum(befores)) / len(samples),
        low=100 * low,
        high=100 * high,
        p_value=compare_scores(befores, afters),
    )


def _adjust(facet: str, slices: Sequence[Slice]) -> Cut:
    """Over every slice and comparison of the cut at once."""
    parts = [part for each in slices for part in each.parts if part is not None]
    adjusted = dict(zip(map(id, parts), adjust_holm([part.p_value for part in parts]), strict=True))
    return Cut(
        facet=facet,
        family=len(parts),
        slices=[
            replace(
                each,
                parts=[part and replace(part, adjusted=adjusted[id(part)]) for part in each.parts],
            )
            for each in slices
        ],
    )


def _make_readers(items: Sequence[Item]) -> dict[str, Reader]:
    columns = dict.fromkeys(name for item in items for name in read_columns(item))
    return {
        "prompt length": _by_parts(items, _measure_prompt, "characters"),
        "target": lambda item: describe_target(item.get("target") or ""),
        "messages": lambda item: _count_messages(len(item["messages"])),
        "tools": lambda item: "with tools" if item.get("tools") else "without",
        **{f"column {name}": _by_column(items, name) for name in columns},
    }


def read_columns(item: Item) -> dict[str, Any]:
    """A row's own columns, as far as the suite kept them."""
    return {**item.get("metadata", {}), **item.get("columns", {})}


def _list_values(items: Sequence[Item], reader: Reader) -> list[str]:
    """In their own order where they are numbers, else by name. None: it tells nothing."""
    values = {reader(item) for item in items}
    found = [value for value in values if value is not None]
    return sorted(found, key=_rank) if len(found) <= MOST_VALUES else []


def _rank(value: str) -> tuple[float, str]:
    number = re.match(r"-?\d+(\.\d+)?", value.replace(",", ""))
    return (float(number.group()) if number else float("inf"), value)


def _measure_prompt(item: Item) -> float:
    return sum(len(_write(message.get("content"))) for message in item["messages"])


def _count_messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"


def describe_target(target: str) -> str:
    """What kind of answer is asked for."""
    if not target.strip():
        return "none"
    if len(target) <= LONG_TARGET and NUMBER.fullmatch(target):  # its time grows with the square
        return "a number"
    if target.strip()[0] in "{[" and _is_json(target):
        return "JSON"
    if len(target.split()) == 1:
        return "one word"
    return "a long text" if "\n" in target or len(target) > LONG_TARGET else "a short text"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _by_column(items: Sequence[Item], name: str) -> Reader:
    def read(item: Item) -> Any:
        return read_columns(item).get(name)

    if len({value for value in map(read, items) if _is_number(value)}) > MOST_VALUES:
        return _by_parts(items, read, "")
    return lambda item: _write(read(item)) or "empty"


def _by_parts(items: Sequence[Item], read: Callable[[Item], Any], unit: str) -> Reader:
    """Numbers in up to PARTS ranges of about as many items."""
    numbers = sorted(filter(_is_number, map(read, items)))
    if not numbers:
        return lambda item: None  # noqa: ARG005 - a reader's signature
    tops = {numbers[len(numbers) * part // PARTS - 1] for part in range(1, PARTS)} | {numbers[-1]}
    bounds = sorted(tops)
    names = {}
    for place, top in enumerate(bounds):
        low = next(each for each in numbers if bisect_left(bounds, each) == place)
        names[place] = (
            f"{low:g} to {top:g} {unit}".rstrip() if low < top else f"{top:g} {unit}".rstrip()
        )

    def name(item: Item) -> str | None:
        number = read(item)
        return names[bisect_left(bounds, number)] if _is_number(number) else None

    return name


def _is_number(value: object) -> bool:
    """Whole numbers too long for a float are names of things."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < MOST_NUMBER


def _write(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
