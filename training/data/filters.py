"""Rows through filters, in order, one at a time: what is kept, and which filter dropped what."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import regex  # type: ignore[import-untyped]

from training.data.batches import is_held_out
from training.data.kinds import list_sides
from training.data.messages import Messages
from training.data.near_duplicates import THRESHOLD, Sketches, find_twins
from training.data.rows import Row
from training.errors import InvalidInput
from training.row_filters import Spec

SEARCH_SECONDS = 1.0
SEARCH_SECONDS_OF_ALL = 300.0
Keep = Callable[[Row], bool]
Count = Callable[[Row], int]


@dataclass(slots=True, kw_only=True)
class Sieve:
    """Rows through filters. `dropped` counts, by the filter's place.

    `lost`: numbers of rows that a filter by losses drops, by its place. `count_tokens`: by base
    model.
    """

    filters: Sequence[Spec]
    lost: dict[int, frozenset[int]] = field(default_factory=dict)
    count_tokens: Mapping[str, Count] = field(default_factory=dict)
    num_rows: int = 0
    num_kept: int = 0
    dropped: Counter[int] = field(default_factory=Counter)

    def find_lost(self, read: Callable[[], Iterable[Row]]) -> None:
        """Near-duplicates are told over all rows that come as far: these are read once more."""
        for place, spec in enumerate(self.filters):
            if spec["filter"] != "near_duplicates":
                continue
            numbers, sketches = array("L"), Sketches()
            for row in self._run(read(), range(place), Counter()):
                numbers.append(row.number)
                sketches.add(read_text(row))
            twins = find_twins(sketches, threshold=spec.get("threshold", THRESHOLD))
            self.lost[place] = frozenset(numbers[index] for index in twins)

    def keep(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in self._run(self._count(rows), range(len(self.filters)), self.dropped):
            self.num_kept += 1
            yield row

    def _count(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            self.num_rows += 1
            yield row

    def _run(self, rows: Iterable[Row], places: range, dropped: Counter[int]) -> Iterator[Row]:
        keeps = [self._make(place, self.filters[place]) for place in places]
        for row in rows:
            refused = next((place for place, keep in enumerate(keeps) if not keep(row)), None)
            if refused is None:
                yield row
            else:
                dropped[refused] += 1

    def _make(self, place: int, spec: Spec) -> Keep:
        if spec["filter"] in ("losses", "near_duplicates"):
            lost = self.lost.get(place, frozenset())
            return lambda row: row.number not in lost
        if spec["filter"] == "length":
            return make_length(spec, self.count_tokens)
        return MAKERS[spec["filter"]](spec)


def make_length(spec: Spec, count_tokens: Mapping[str, Count]) -> Keep:
    counts: dict[str, Count] = {
        "characters": lambda row: len(read_text(row)),
        "messages": lambda row: len(list_messages(row)),
    }
    unit = spec.get("unit", "characters")
    count = count_tokens[spec["base_model"]] if unit == "tokens" else counts[unit]
    low, high = spec.get("least", 0), spec.get("most", 10**9)
    return lambda row: low <= count(row) <= high


def make_contains(spec: Spec) -> Keep:
    flags = regex.IGNORECASE if spec.get("ignore_case") else 0
    compiled = regex.compile(spec["pattern"], flags)
    where, drop = spec.get("where", "anywhere"), spec.get("drop", False)

    spent = 0.0

    def keep(row: Row) -> bool:
        # Backtracking can take forever: the regex module gives up by the clock.
        nonlocal spent
        began = monotonic()
        try:
            found = any(
                compiled.search(text, timeout=SEARCH_SECONDS) for text in list_texts(row, where)
            )
        except TimeoutError:
            raise InvalidInput(
                f"the pattern {spec['pattern']!r:.60} searched row {row.number} for more than "
                f"{SEARCH_SECONDS:g} s: write it without repeats inside repeats"
            ) from None
        spent += monotonic() - began
        if spent > SEARCH_SECONDS_OF_ALL:
            raise InvalidInput(
                f"the pattern {spec['pattern']!r:.60} searched for more than "
                f"{SEARCH_SECONDS_OF_ALL:g} s in all rows: write a simpler one"
            )
        return bool(found != drop)

    return keep


def make_role(spec: Spec) -> Keep:
    role, drop = spec["role"], spec.get("drop", False)
    return lambda row: any(message["role"] == role for message in list_messages(row)) != drop


def make_metadata(spec: Spec) -> Keep:
    column, value, drop = spec["column"], spec["value"], bool(spec.get("drop"))
    return lambda row: bool(write_value(row.metadata.get(column)) == value) != drop


def write_value(value: Any) -> str | None:
    """As a person writes it into a form."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return None if value is None else str(value)


def make_duplicates(_spec: Spec) -> Keep:
    seen: set[bytes] = set()

    def keep(row: Row) -> bool:
        key = row.key[:12]
        is_new = key not in seen
        seen.add(key)
        return is_new

    return keep


MAKERS: dict[str, Callable[[Spec], Keep]] = {
    "contains": make_contains,
    "role": make_role,
    "metadata": make_metadata,
    "duplicates": make_duplicates,
}


def list_messages(row: Row) -> Messages:
    """Both answers of a preference are messages too."""
    chosen, rejected = list_sides(row.metadata) or ([], [])
    return [*map(dict, row.messages), *chosen, *rejected]


def list_texts(row: Row, where: str = "anywhere") -> list[str]:
    if not row.messages:
        return [row.metadata["text"]] if where == "anywhere" else []
    return [
        message["content"]
        for message in list_messages(row)
        if where in ("anywhere", message["role"])
    ]


def read_text(row: Row) -> str:
    return "\n".join(list_texts(row))


def read_prompt(row: Row) -> str:
    """What is asked, or the whole text."""
    asked = [message["content"] for message in row.messages if message["role"] == "user"]
    return "\n".join(asked) or read_text(row)


def choose_side(row: Row, *, share: float, seed: int, by_prompt: bool, num_splits: int) -> str:
    """train or held_out: by what the row says, so that equal rows fall on one side."""
    key = row.prompt_key if by_prompt else row.key
    is_out = is_held_out(key, share=share, seed=seed, num_splits=num_splits)
    return "held_out" if is_out else "train"
