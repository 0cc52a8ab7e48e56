"""Uploaded files -> rows, one at a time: JSONL, CSV or Parquet, each bad line with its reason."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Literal, get_args

import orjson
import pyarrow
from pyarrow import parquet

from training.errors import InvalidInput

Format = Literal["jsonl", "csv", "parquet"]

MAX_LINE_BYTES = 10_000_000
ROLES = ("system", "developer", "user", "assistant", "tool")
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
    """One conversation. `metadata` is every other column: target, tools, id ..."""

    number: int
    messages: Sequence[Mapping[str, Any]]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> bytes:
        """A hash of the messages: rows that teach the same have the same key."""
        content = orjson.dumps(self.messages, default=str, option=orjson.OPT_SORT_KEYS)
        return sha256(content).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A line that is no row. `kind` is the same for all lines with the same fault."""

    number: int
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"line {self.number}: {self.reason}"


class Refused(Exception):  # noqa: N818 - never leaves this module
    """What is wrong with one row."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def read_rows(path: Path, format: str) -> Iterator[Row | BadRow]:
    """Lines keep their numbers in the file; blank lines are skipped."""
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


def read_jsonl(path: Path) -> Iterator[Row | BadRow]:
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


def parse_jsonl_line(number: int, line: bytes) -> Row | BadRow:
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
    return parse_row(number, columns)


def read_csv(path: Path) -> Iterator[Row | BadRow]:
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


def check_columns(names: Sequence[str]) -> None:
    if "messages" not in names and not {"prompt", "completion"} <= set(names):
        listed = ", ".join(name[:40] for name in names[:8])
        raise InvalidInput(
            f"the columns are {listed}: a column messages, or prompt and completion, is needed"
        )


def parse_csv_fields(number: int, header: Sequence[str], fields: list[str]) -> Row | BadRow:
    if len(fields) != len(header):
        reason = f"the line has {len(fields)} fields, the header {len(header)}"
        return BadRow(number=number, kind="wrong number of fields", reason=reason)
    columns: dict[str, Any] = dict(zip(header, fields, strict=True))
    for name, text in columns.items():
        if not is_utf8(text):
            return BadRow(number=number, kind="not UTF-8", reason=f"{name} is not UTF-8 text")
    if "messages" in columns:
        try:
            columns["messages"] = orjson.loads(columns["messages"])
        except orjson.JSONDecodeError as error:
            reason = f"messages is not JSON: {error.msg} at character {error.pos + 1}"
            return BadRow(number=number, kind="not JSON", reason=reason)
    return parse_row(number, columns)


def is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_parquet(path: Path) -> Iterator[Row | BadRow]:
    """The header is read now, the rows by batches: numbers count rows from 1."""
    try:
        file = parquet.ParquetFile(path)
        check_columns(file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(batch_size=256):
            for columns in batch.to_pylist():
                number += 1
                yield parse_row(number, {k: v for k, v in columns.items() if v is not None})
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise InvalidInput(f"the file is not readable Parquet: {error}") from error


def parse_row(number: int, columns: Any) -> Row | BadRow:
    try:
        messages, metadata = split_columns(columns)
        check_conversation(messages)
    except Refused as error:
        return BadRow(number=number, kind=error.kind, reason=str(error))
    return Row(number=number, messages=messages, metadata=metadata)


def split_columns(columns: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    if not isinstance(columns, dict):
        raise Refused("not an object", 'the line is not an object like {"messages": [...]}')
    if "messages" in columns:
        metadata = {key: value for key, value in columns.items() if key != "messages"}
        return parse_messages(columns["messages"]), metadata
    if not {"prompt", "completion"} & columns.keys():
        raise Refused("no messages", "the row has neither messages nor prompt and completion")
    for name in ("prompt", "completion"):
        check_text(name, columns.get(name), may_be_empty=False)
    messages = [
        {"role": "user", "content": columns.pop("prompt")},
        {"role": "assistant", "content": columns.pop("completion")},
    ]
    return messages, columns


def check_text(name: str, value: Any, *, may_be_empty: bool) -> None:
    if value is None:
        raise Refused("a field is missing", f"{name} is missing")
    if not isinstance(value, str):
        raise Refused("content is not text", f"{name} is not text but {json_type(value)}")
    if not may_be_empty and not value.strip():
        raise Refused("empty text", f"{name} is empty")
    if "\x00" in value:
        # PostgreSQL stores no such text, and no tokenizer was trained on one.
        raise Refused("NUL character", f"{name} has a NUL character")


def json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", str: "text"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "null")


def parse_messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list):
        raise Refused("messages is not a list", f"messages is not a list but {json_type(messages)}")
    return [parse_message(place, message) for place, message in enumerate(messages, start=1)]


def parse_message(place: int, message: Any) -> dict[str, Any]:
    name = f"message {place}"
    if not isinstance(message, dict):
        raise Refused("a message is not an object", f"{name} is not an object with role, content")
    # Parquet gives every message every field that one of them has.
    kept = {key: value for key, value in message.items() if value is not None}
    role = kept.get("role")
    if role not in ROLES:
        listed = ", ".join(ROLES)
        raise Refused(
            "unknown role", f"{name} has the role {str(role)[:40]!r}, not one of {listed}"
        )
    if "tool_calls" in kept:
        raise Refused("tool_calls", f"{name} has tool_calls: write the call as text in content")
    check_text(f"{name} ({role}): content", kept.get("content"), may_be_empty=role != "assistant")
    if kept.get("weight", 1) not in (0, 1):
        raise Refused("wrong weight", f"{name} has a weight that is neither 0 nor 1")
    return kept


def check_conversation(messages: Sequence[Mapping[str, Any]]) -> None:
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise Refused("no assistant turn", "the row has no assistant turn: nothing to learn from")
    if all(message.get("weight", 1) == 0 for message in answers):
        raise Refused("no assistant turn", "every assistant turn has weight 0: nothing to learn")
    if messages[0]["role"] == "assistant":
        raise Refused("starts with assistant", "message 1 is the assistant's: nobody asked")
