"""What an uploaded file holds, and the normalised JSONL that runs read."""

import os
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
import orjson

from training.data.kinds import list_sides
from training.data.messages import Refused, check_text, parse_messages
from training.data.rows import BadRow, Raw, Row, read_columns, read_rows
from training.errors import InvalidInput

MAX_BAD_SHOWN = 100
MAX_COLUMNS_SHOWN = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A file's validation. `bad` are the first bad lines; `reasons` counts all, by kind."""

    format: str
    num_rows: int  # valid ones
    num_bad: int
    bad: tuple[BadRow, ...]
    reasons: Mapping[str, int]
    roles: Mapping[str, int]  # messages, by role
    columns: Mapping[str, int]  # rows that carry each further column
    num_duplicates: int  # rows whose messages stood in an earlier row
    num_turns_max: int
    min_characters: int
    median_characters: int
    max_characters: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A normalised file: `digest` is the sha256 of its bytes."""

    digest: str
    num_rows: int
    size_bytes: int


@dataclass(slots=True)
class Census:
    """Counts over rows, in 12 bytes a row."""

    bad: list[BadRow] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    lengths: "array[int]" = field(default_factory=lambda: array("L"))
    hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    num_turns_max: int = 0

    def add_bad(self, row: BadRow) -> None:
        self.reasons[row.kind] += 1
        if len(self.bad) < MAX_BAD_SHOWN:
            self.bad.append(row)

    def add(self, row: Row) -> None:
        sides = list_sides(row.metadata) or ((), ())
        said = [*row.messages, *sides[0], *sides[1]]
        own = ("chosen", "rejected") if any(sides) else ("text",) if not row.messages else ()
        text = "" if row.messages else row.metadata["text"]
        self.roles.update(message["role"] for message in said)
        self.columns.update(name[:80] for name in row.metadata if name not in own)
        self.num_turns_max = max(self.num_turns_max, len(row.messages) + max(map(len, sides)))
        self.lengths.append(sum(len(message["content"]) for message in said) + len(text))
        self.hashes.append(int.from_bytes(row.key[:8], "little"))

    def count_duplicates(self) -> int:
        return len(self.hashes) - len(np.unique(np.frombuffer(self.hashes, dtype=np.uint64)))


def validate(path: Path, format: str, kind: str = "conversation") -> Report:
    """Read the whole file once. Bad lines are reported; a file that is no such file raises."""
    census = Census()
    for row in read_rows(path, format, kind):
        if isinstance(row, BadRow):
            census.add_bad(row)
        else:
            census.add(row)
    if not census.lengths and not census.reasons:
        raise InvalidInput("the file has no rows: upload one with at least one row")
    return make_report(census, format)


def make_report(census: Census, format: str) -> Report:
    lengths = census.lengths or array("L", [0])
    return Report(
        format=format,
        num_rows=len(census.lengths),
        num_bad=census.reasons.total(),
        bad=tuple(census.bad),
        reasons=dict(census.reasons.most_common()),
        roles=dict(census.roles.most_common()),
        columns=dict(census.columns.most_common(MAX_COLUMNS_SHOWN)),
        num_duplicates=census.count_duplicates(),
        num_turns_max=census.num_turns_max,
        min_characters=min(lengths),
        median_characters=median_low(lengths),
        max_characters=max(lengths),
    )


def good_rows(rows: Iterable[Row | BadRow]) -> Iterable[Row]:
    return (row for row in rows if isinstance(row, Row))


def write_rows(rows: Iterable[Row], dest: Path) -> Written:
    """Normalised JSONL at `dest`, by rename: the same rows give the same bytes and digest."""
    part = dest.with_name(f".{dest.name}.{os.getpid()}.part")
    digest, num_rows, size = sha256(), 0, 0
    try:
        with part.open("wb") as file:
            for row in rows:
                line = dump_row(row)
                digest.update(line)
                size += file.write(line)
                num_rows += 1
        if not num_rows:
            raise InvalidInput("no row is valid: nothing was kept")
        part.rename(dest)
    finally:
        part.unlink(missing_ok=True)
    return Written(digest=digest.hexdigest(), num_rows=num_rows, size_bytes=size)


def dump_row(row: Row) -> bytes:
    columns = dict(row.metadata)
    if row.messages:
        columns["messages"] = row.messages
    # Parquet columns may hold what JSON cannot: dates as ISO text, the rest as Python writes it.
    options = orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
    return orjson.dumps(columns, default=str, option=options)


def read_normalised(path: Path) -> Iterable[Row]:
    """The rows of a file that write_rows wrote; a bad one means that the file was changed."""
    for raw in read_columns(path, "jsonl"):
        try:
            yield parse_normalised(raw)
        except Refused as error:
            raise InvalidInput(
                f"the stored dataset was changed: line {raw.number}: {error}"
            ) from error


def parse_normalised(raw: Raw | BadRow) -> Row:
    if isinstance(raw, BadRow):
        raise Refused(raw.kind, raw.reason)
    if not isinstance(raw.columns, dict):
        raise Refused("not an object", "it is not an object")
    messages: list[dict[str, Any]] = []
    metadata = dict(raw.columns)
    if "messages" in metadata:
        messages = parse_messages(metadata.pop("messages"))
    else:
        check_text("text", metadata.get("text"), may_be_empty=False)
    return Row(number=raw.number, messages=messages, metadata=metadata)
