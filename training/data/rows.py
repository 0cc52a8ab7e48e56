"""Uploaded files -> rows, one at a time: JSONL, CSV or Parquet, each bad line with its reason."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, get_args

import orjson
import pyarrow
from pyarrow import parquet

from training.data.kinds import (
    ANSWER,
    TARGETS,
    check_columns,
    choose_kinds,
    list_sides,
    parse_columns,
)
from training.data.messages import Refused
from training.errors import InvalidInput

Format = Literal["jsonl", "csv", "parquet"]

MAX_LINE_BYTES = 10_000_000
MAX_BATCH_ROWS = 256  # of Parquet
MAX_BATCH_BYTES = 128 * 2**20
MESSAGE_COLUMNS = {"prompt", "completion", "chosen", "rejected"}
ROWS_LOOKED_AT = 200  # to tell a file's kind
NUL = "\x00"
BOM = b"\xef\xbb\xbf"
OTHER_FORMATS = {
    b"PK\x03\x04": "a zip or Excel file",
    b"\x1f\x8b": "a gzip file",
    b"(\xb5/\xfd": "a zstd file",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"\xff\xfe": "UTF-16 text, not UTF-8",
    b"\xfe\xff": "UTF-16 text, not UTF-8",
}

# csv refuses fields over 128 KiB by default; lines are bounded here.
csv.field_size_limit(MAX_LINE_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row, as `kinds` writes it. `metadata` is every other column: target, tools, id ..."""

    number: int
    messages: Sequence[Mapping[str, Any]]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> bytes:
        """A hash of what is said: rows that teach the same have the same key."""
        content: Any = self.messages
        if sides := list_sides(self.metadata):
            content = [self.messages, *sides]
        elif not self.messages:
            content = self.metadata.get("text")
        return hash_content(content)

    @property
    def prompt_key(self) -> bytes:
        """A hash of what is asked: rows that answer the same have the same one."""
        messages = list(self.messages)
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        return hash_content(messages) if messages else self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A line that is no row. `kind` is the same for all lines with the same fault."""

    number: int
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"line {self.number}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """One line's columns, whatever they are."""

    number: int
    columns: Any


def hash_content(content: Any) -> bytes:
    dumped = orjson.dumps(content, default=str, option=orjson.OPT_SORT_KEYS)
    return sha256(dumped).digest()


def read_rows(path: Path, format: str, kind: str = "conversation") -> Iterator[Row | BadRow]:
    """Lines keep their numbers in the file; blank lines are skipped."""
    return (
        raw if isinstance(raw, BadRow) else parse_row(raw, kind)
        for raw in read_columns(path, format)
    )


def detect_kinds(path: Path, format: str) -> tuple[str, ...]:
    """What the file's first rows may be; several where their columns do not tell."""
    first = islice(read_columns(path, format), ROWS_LOOKED_AT)
    return choose_kinds(
        raw.columns for raw in first if isinstance(raw, Raw) and isinstance(raw.columns, dict)
    )


def read_columns(path: Path, format: str) -> Iterator[Raw | BadRow]:
    readers = {"jsonl": read_jsonl, "csv": read_csv, "parquet": read_parquet}
    if format not in readers:
        raise InvalidInput(f"format {format!r} is not one of {', '.join(get_args(Format))}")
    if path.stat().st_size == 0:
        raise InvalidInput("the file is empty: upload one with at least one row")
    return readers[format](path)


def detect_format(path: Path, name: str) -> Format:
    """By content where it tells, else by the ending of the uploaded name."""
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise InvalidInput(f"{name} is empty: upload a file with at least one row")
    if head.startswith(b"PAR1"):
        return "parquet"
    for magic, what in OTHER_FORMATS.items():
        if head.startswith(magic):
            raise InvalidInput(f"{name} is {what}: upload JSONL, CSV or Parquet")
    return detect_text_format(head.removeprefix(BOM).lstrip(), name.lower())


def detect_text_format(head: bytes, name: str) -> Format:
    if head.startswith(b"["):
        raise InvalidInput(f"{name} is one JSON array: write one object on each line (JSONL)")
    if head.startswith(b"{"):
        return "jsonl"
    header = head.split(b"\n", 1)[0].decode("utf-8", "replace").lower().replace('"', "")
    if name.endswith(".csv") or {"messages", "prompt"} & set(header.strip().split(",")):
        return "csv"
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return "jsonl"
    raise InvalidInput(f"{name} is neither JSONL, CSV with a header, nor Parquet")


def read_jsonl(path: Path) -> Iterator[Raw | BadRow]:
    with path.open("rb") as file:
        for number, line in read_lines(file):
            if line is None:
                yield too_long(number)
            elif line.strip():
                yield parse_jsonl_line(number, line.rstrip())


def read_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines; None for one over the limit, which is skipped without being held."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(BOM)
        if len(line) <= MAX_LINE_BYTES:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)
        yield number, None


def too_long(number: int) -> BadRow:
    return BadRow(
        number=number,
        kind="line too long",
        reason=f"the line is longer than {MAX_LINE_BYTES // 1_000_000} MB",
    )


def parse_jsonl_line(number: int, line: bytes) -> Raw | BadRow:
    try:
        line.decode("utf-8")
        columns = orjson.loads(line)
    except UnicodeDecodeError as error:
        return BadRow(
            number=number, kind="not UTF-8", reason=f"byte {error.start + 1} is not UTF-8 text"
        )
    except orjson.JSONDecodeError as error:
        reason = f"the line is not JSON: {error.msg} at character {error.pos + 1}"
        return BadRow(number=number, kind="not JSON", reason=reason)
    return Raw(number=number, columns=columns)


def read_csv(path: Path) -> Iterator[Raw | BadRow]:
    with path.open("rb") as file:
        source = CsvLines(file)
        reader = csv.reader(source, strict=True)
        header = read_header(reader)
        while True:
            source.first = 0
            try:
                fields = next(reader)
            except StopIteration:
                yield from source.too_long
                return
            except csv.Error as error:
                yield BadRow(number=source.first, kind="not CSV", reason=f"not CSV: {error}")
                continue
            yield from source.take_too_long()
            if fields:
                yield parse_csv_fields(source.first, header, fields)


class CsvLines:
    """Lines as text for csv.reader. `first` is the line a record began on, once set to 0."""

    def __init__(self, file: IO[bytes]) -> None:
        self.lines = read_lines(file)
        self.first = 0
        self.too_long: list[BadRow] = []

    def __iter__(self) -> Iterator[str]:
        for number, line in self.lines:
            if line is None:
                self.too_long.append(too_long(number))
            else:
                self.first = self.first or number
                # Broken bytes become lone surrogates, and are found in the field they are in.
                yield line.decode("utf-8", "surrogateescape")

    def take_too_long(self) -> list[BadRow]:
        found, self.too_long = self.too_long, []
        return found


def read_header(reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise InvalidInput(f"the first line is not a CSV header: {error}") from error
    if not is_utf8("".join(header)):
        raise InvalidInput("the first line is not UTF-8 text: save the file as UTF-8")
    check_columns(header)
    return header


def parse_csv_fields(number: int, header: Sequence[str], fields: list[str]) -> Raw | BadRow:
    if len(fields) != len(header):
        reason = f"the line has {len(fields)} fields, the header {len(header)}"
        return BadRow(number=number, kind="wrong number of fields", reason=reason)
    columns: dict[str, Any] = dict(zip(header, fields, strict=True))
    for name, text in columns.items():
        if not is_utf8(text):
            return BadRow(number=number, kind="not UTF-8", reason=f"{name} is not UTF-8 text")
    for name in {*TARGETS, ANSWER} & columns.keys():
        if not columns[name]:
            del columns[name]  # an empty cell is how CSV writes that there is none
    for name in MESSAGE_COLUMNS & columns.keys():
        columns[name] = parse_cell(columns[name])
    if "messages" in columns:
        try:
            columns["messages"] = orjson.loads(columns["messages"])
        except orjson.JSONDecodeError as error:
            reason = f"messages is not JSON: {error.msg} at character {error.pos + 1}"
            return BadRow(number=number, kind="not JSON", reason=reason)
    return Raw(number=number, columns=columns)


def parse_cell(text: str) -> Any:
    """Messages stand in a CSV cell as JSON; any other text is itself."""
    if not text.lstrip().startswith("["):
        return text
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    is_messages = all(isinstance(each, dict) and "role" in each for each in value)
    return value if value and is_messages else text


def is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_parquet(path: Path) -> Iterator[Raw | BadRow]:
    """The header is read now, the rows by batches: numbers count rows from 1."""
    try:
        file = parquet.ParquetFile(path)
        check_columns(file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(batch_size=choose_batch(file)):
            may_be_long = batch.nbytes > MAX_LINE_BYTES // 8  # JSON is wider, but not by so much
            for columns in batch.to_pylist():
                number += 1
                kept = {key: value for key, value in columns.items() if value is not None}
                is_long = may_be_long and count_json(kept) > MAX_LINE_BYTES
                yield too_long(number) if is_long else Raw(number=number, columns=kept)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise InvalidInput(f"the file is not readable Parquet: {error}") from error


def choose_batch(file: parquet.ParquetFile) -> int:
    """Rows that are unpacked at once. What is written once may stand in every row: a file of a
    kilobyte can hold gigabytes of text."""
    about = file.metadata
    groups = (about.row_group(number) for number in range(about.num_row_groups))
    largest = max(map(count_unpacked, groups), default=1)
    return max(1, min(MAX_BATCH_ROWS, MAX_BATCH_BYTES // max(1, largest)))


def count_unpacked(group: parquet.RowGroupMetaData) -> int:
    """Bytes of all columns of a group, which may come together in each of its rows."""
    return sum(group.column(place).total_uncompressed_size for place in range(group.num_columns))


def count_json(columns: Mapping[str, Any]) -> int:
    return len(orjson.dumps(columns, default=str, option=orjson.OPT_NON_STR_KEYS))


def parse_row(raw: Raw, kind: str) -> Row | BadRow:
    try:
        messages, metadata = parse_columns(kind, raw.columns)
    except Refused as error:
        return BadRow(number=raw.number, kind=error.kind, reason=str(error))
    for name, value in metadata.items():
        if has_nul([name, value]):
            reason = f"{name.replace(NUL, '')[:80]} has a NUL character"
            return BadRow(number=raw.number, kind="NUL character", reason=reason)
    return Row(number=raw.number, messages=messages, metadata=metadata)


def has_nul(value: Any) -> bool:
    """Anywhere in it: a target, a tool's description, a key."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str) and NUL in item:
            return True
        if isinstance(item, Mapping):
            waiting += [*item, *item.values()]
        elif isinstance(item, list | tuple):  # a map of Parquet is a list of pairs
            waiting += item
    return False
