"""A version's rows as a file of another format, made while it is sent: nothing is held whole."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pyarrow
from django.conf import settings
from pyarrow import parquet

from webapp.core.errors import NotFound, UserError
from webapp.core.streams import StreamedResponse
from webapp.datasets.models import DatasetVersion

CHUNK_BYTES = 1024 * 1024
ROWS_A_GROUP = 1000
TYPES = {
    "jsonl": "application/jsonl",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}

Columns = dict[str, Any]


def export_version(version: DatasetVersion, format: str) -> StreamedResponse:
    """Every column of every row; read back, the same rows with the same digest."""
    if format not in TYPES:
        raise NotFound(f"The format is one of {', '.join(TYPES)}.")
    if version.status != DatasetVersion.Status.READY:
        raise UserError(f"{version} is not ready: its rows can be downloaded once it is.")
    path: Path = settings.HONE_HOME / version.rows_path
    writers = {"jsonl": read_bytes, "csv": write_csv, "parquet": write_parquet}
    response = StreamedResponse(writers[format](path), content_type=TYPES[format])
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in version.dataset.name)
    name = (
        f"{stem.encode('ascii', 'replace').decode().replace('?', '-')}-v{version.number}.{format}"
    )
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


def read_bytes(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def read_columns(path: Path) -> Iterator[Columns]:
    with path.open("rb") as file:
        for line in file:
            yield orjson.loads(line)


def read_groups(path: Path) -> Iterator[list[Columns]]:
    rows = read_columns(path)
    while group := list(islice(rows, ROWS_A_GROUP)):
        yield group


def list_names(rows: Iterable[Columns]) -> list[str]:
    """What a row says first, what belongs to it behind."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    first = [name for name in ("messages", "text", "chosen", "rejected") if name in names]
    return [*first, *sorted(names.keys() - set(first))]


def write_csv(path: Path) -> Iterator[bytes]:
    """What is no text is JSON."""
    names = list_names(read_columns(path))
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(names)
    for rows in read_groups(path):
        writer.writerows([[write_cell(row.get(name)) for name in names] for row in rows])
        yield take(buffer).encode()
    yield take(buffer).encode()


def take(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text


def write_cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def write_parquet(path: Path) -> Iterator[bytes]:
    schema = find_schema(path)
    sink = Sink()
    with parquet.ParquetWriter(sink, schema) as writer:
        for rows in read_groups(path):
            writer.write_table(make_table(rows, schema))
            yield from sink.take()
    yield from sink.take()


def find_schema(path: Path) -> pyarrow.Schema:
    """A column whose values are of no one type is text, and its values are JSON."""
    types: dict[str, pyarrow.DataType] = {}
    for rows in read_groups(path):
        for name in dict.fromkeys(name for row in rows for name in row):
            types[name] = widen(types.get(name), [row.get(name) for row in rows])
    names = list_names([types])
    return pyarrow.schema([(name, types[name]) for name in names])


def widen(known: pyarrow.DataType | None, values: list[Any]) -> pyarrow.DataType:
    try:
        found = pyarrow.array(values).type
        if known is None:
            return found
        fields = [pyarrow.schema([("x", each)]) for each in (known, found)]
        return pyarrow.unify_schemas(fields, promote_options="permissive").field("x").type
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
        return pyarrow.string()


def make_table(rows: Iterable[Mapping[str, Any]], schema: pyarrow.Schema) -> pyarrow.Table:
    kept = list(rows)
    arrays = []
    for field in schema:
        values = [row.get(field.name) for row in kept]
        if field.type == pyarrow.string():
            values = [None if value is None else write_cell(value) for value in values]
        arrays.append(pyarrow.array(values, type=field.type))
    return pyarrow.Table.from_arrays(arrays, schema=schema)


class Sink(io.RawIOBase):
    """Where a writer writes, and what it wrote since somebody looked."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[bytes] = []
        self.position = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data)
        self.parts.append(part)
        self.position += len(part)
        return len(part)

    def tell(self) -> int:
        return self.position

    def take(self) -> list[bytes]:
        parts, self.parts = self.parts, []
        return parts
