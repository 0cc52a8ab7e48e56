"""The validation report and the normalised file."""

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from training.data.rows import Row, read_rows
from training.data.validate import good_rows, read_normalised, validate, write_rows
from training.errors import InvalidInput


def chat(question: str, answer: str, **columns: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **columns}


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Four rows, one of them twice, and three bad lines."""
    return write(
        tmp_path / "mixed.jsonl",
        chat("Hi", "Hey!", target="Hey!"),
        chat("What is 2 + 3?", "5"),
        "not json",
        chat("Hi", "Hey!", target="other"),
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"messages": [{"role": "user", "content": "Ho"}]},
        chat("Long", "x" * 100),
    )


def test_the_report_counts_rows_reasons_and_roles(mixed: Path) -> None:
    report = validate(mixed, "jsonl")
    assert (report.num_rows, report.num_bad, report.num_duplicates) == (4, 3, 1)
    assert report.reasons == {"no assistant turn": 2, "not JSON": 1}
    assert report.roles == {"user": 4, "assistant": 4}
    assert report.columns == {"target": 2}
    assert (report.min_characters, report.median_characters, report.max_characters) == (6, 6, 104)


def test_the_report_names_bad_lines_in_order(mixed: Path) -> None:
    assert [(bad.number, bad.kind) for bad in validate(mixed, "jsonl").bad] == [
        (3, "not JSON"),
        (5, "no assistant turn"),
        (6, "no assistant turn"),
    ]


def test_the_report_travels_as_json(mixed: Path) -> None:
    found = json.loads(json.dumps(validate(mixed, "jsonl").to_json()))
    assert found["num_bad"] == 3
    assert found["bad"][1] == {
        "number": 5,
        "kind": "no assistant turn",
        "reason": "the row has no assistant turn: nothing to learn from",
    }


def test_a_thousand_bad_lines_are_counted_and_a_hundred_shown(tmp_path: Path) -> None:
    report = validate(write(tmp_path / "bad.jsonl", *["x"] * 1000), "jsonl")
    assert (report.num_rows, report.num_bad, len(report.bad)) == (0, 1000, 100)
    assert (report.min_characters, report.max_characters) == (0, 0)


def test_a_file_of_blank_lines_has_no_rows(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="the file has no rows"):
        validate(write(tmp_path / "blank.jsonl", "", " "), "jsonl")


def test_normalised_rows_are_one_object_a_line_with_their_digest(
    mixed: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "rows.jsonl"
    written = write_rows(good_rows(read_rows(mixed, "jsonl")), dest)
    assert written.digest == hashlib.sha256(dest.read_bytes()).hexdigest()
    assert (written.num_rows, written.size_bytes) == (4, dest.stat().st_size)
    assert json.loads(dest.read_text().splitlines()[0]) == chat("Hi", "Hey!", target="Hey!")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mixed.jsonl", "rows.jsonl"]


def test_the_same_rows_have_the_same_digest_whatever_they_came_in(tmp_path: Path) -> None:
    messages = chat("Hi", "Hey!")["messages"]
    parquet.write_table(pa.table({"messages": [messages]}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("prompt,completion\nHi,Hey!\n")
    (tmp_path / "a.jsonl").write_text(
        '{ "messages":[{"content":"Hi","role":"user"}, {"content":"Hey!","role":"assistant"}]}'
    )
    digests = {
        write_rows(good_rows(read_rows(tmp_path / f"a.{form}", form)), tmp_path / "out").digest
        for form in ("parquet", "csv", "jsonl")
    }
    assert len(digests) == 1


def test_normalised_rows_read_back_as_they_were(mixed: Path, tmp_path: Path) -> None:
    rows = list(good_rows(read_rows(mixed, "jsonl")))
    write_rows(rows, tmp_path / "rows.jsonl")
    back = list(read_normalised(tmp_path / "rows.jsonl"))
    assert [(row.messages, row.metadata) for row in back] == [
        (row.messages, row.metadata) for row in rows
    ]


def test_dates_and_bytes_in_further_columns_become_text(tmp_path: Path) -> None:
    day = datetime.date(2026, 1, 2)
    row = Row(number=1, messages=chat("Hi", "Hey!")["messages"], metadata={"day": day, "raw": b"x"})
    write_rows([row], tmp_path / "rows.jsonl")
    (back,) = read_normalised(tmp_path / "rows.jsonl")
    assert back.metadata == {"day": "2026-01-02", "raw": "b'x'"}


def test_a_file_without_one_valid_row_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no row is valid"):
        write_rows([], tmp_path / "rows.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_stored_file_that_was_changed_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="the stored dataset was changed: line 1: the line is"):
        list(read_normalised(write(tmp_path / "rows.jsonl", "x")))
