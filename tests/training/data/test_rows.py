"""Uploads as people make them, whole and broken."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from training.data.rows import BadRow, Row, choose_batch, detect_format, read_rows
from training.data.validate import read_normalised, write_rows
from training.errors import InvalidInput

MB = 1_000_000
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hey!"}]


def write(path: Path, *lines: bytes | str | dict[str, Any]) -> Path:
    with path.open("wb") as file:
        for line in lines:
            text = json.dumps(line) if isinstance(line, dict) else line
            file.write((text.encode() if isinstance(text, str) else text) + b"\n")
    return path


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    return tmp_path / "upload"


def only(path: Path, format: str = "jsonl") -> Row | BadRow:
    (row,) = read_rows(path, format)
    return row


def reason_of(path: Path, format: str = "jsonl") -> str:
    row = only(path, format)
    assert isinstance(row, BadRow)
    return str(row)


def test_messages_and_further_columns_are_kept(upload: Path) -> None:
    row = only(write(upload, {"messages": CHAT, "target": "Hey!", "tools": [{"name": "f"}]}))
    assert row == Row(
        number=1, messages=CHAT, metadata={"target": "Hey!", "tools": [{"name": "f"}]}
    )


def test_prompt_and_completion_become_a_conversation(upload: Path) -> None:
    row = only(write(upload, {"prompt": "Hi", "completion": "Hey!", "id": 7}))
    assert row == Row(number=1, messages=CHAT, metadata={"id": 7})


def test_a_byte_order_mark_crlf_and_blank_lines_are_no_fault(upload: Path) -> None:
    line = json.dumps({"messages": CHAT}).encode()
    upload.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line)
    assert [row.number for row in read_rows(upload, "jsonl")] == [1, 4]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"messages": [', "line 1: the line is not JSON: unexpected end of data at character 15"),
        ("[1, 2]", 'line 1: the line is not an object like {"messages": [...]}'),
        ({"text": "x"}, "line 1: the row has neither messages nor prompt and completion"),
        ({"prompt": "Hi"}, "line 1: completion is missing"),
        ({"prompt": "Hi", "completion": 5}, "line 1: completion is not text but a number"),
        ({"prompt": " ", "completion": "x"}, "line 1: prompt is empty"),
        ({"prompt": "a\x00", "completion": "x"}, "line 1: prompt has a NUL character"),
        ({"messages": CHAT, "target": "a\x00"}, "line 1: target has a NUL character"),
        ({"messages": CHAT, "a\x00b": 1}, "line 1: ab has a NUL character"),
        ({"messages": CHAT, "e": {"f": [{"g\x00": 1}]}}, "line 1: e has a NUL character"),
        ({"messages": "Hi"}, "line 1: messages is not a list but text"),
        ({"messages": {"role": "user"}}, "line 1: messages is not a list but an object"),
        ({"messages": ["Hi"]}, "line 1: message 1 is not an object with role, content"),
        ({"messages": []}, "line 1: the row has no assistant turn: nothing to learn from"),
        ({"messages": CHAT[:1]}, "line 1: the row has no assistant turn: nothing to learn from"),
        ({"messages": CHAT[1:]}, "line 1: message 1 is the assistant's: nobody asked"),
    ],
)
def test_a_line_that_is_no_conversation_says_why(upload: Path, line: Any, reason: str) -> None:
    assert reason_of(write(upload, line)) == reason


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "bot", "content": "x"}, "message 2 has the role 'bot', not one of system,"),
        ({"content": "x"}, "message 2 has the role 'None', not one of"),
        ({"role": ["user"], "content": "x"}, "message 2 has the role \"['user']\", not one of"),
        ({"role": "assistant", "content": [1]}, "message 2 (assistant): content is not text but a"),
        ({"role": "assistant", "content": " "}, "message 2 (assistant): content is empty"),
        ({"role": "assistant"}, "message 2 (assistant): content is missing"),
        (
            {"role": "assistant", "content": None, "tool_calls": []},
            "message 2 has tool_calls: write the call as text in content",
        ),
        (
            {"role": "assistant", "content": "x", "weight": 0.5},
            "message 2 has a weight that is neither 0 nor 1",
        ),
        (
            {"role": "assistant", "content": "x", "weight": 0},
            "every assistant turn has weight 0",
        ),
    ],
)
def test_a_wrong_message_is_named_with_its_place(
    upload: Path, message: dict[str, Any], reason: str
) -> None:
    write(upload, {"messages": CHAT}, {"messages": [CHAT[0], message]})
    _, bad = read_rows(upload, "jsonl")
    assert isinstance(bad, BadRow)
    assert str(bad).startswith(f"line 2: {reason}")


def test_broken_utf8_spoils_its_own_line_only(upload: Path) -> None:
    good = {"messages": CHAT}
    first, bad, last = read_rows(write(upload, good, b'{"prompt": "\xff\xfe"}', good), "jsonl")
    assert isinstance(bad, BadRow)
    assert str(bad) == "line 2: byte 13 is not UTF-8 text"
    assert isinstance(first, Row)
    assert isinstance(last, Row)


def test_half_an_emoji_as_an_escape_is_not_text(upload: Path) -> None:
    line = '{"prompt": "Hi", "completion": "\\ud83d"}'
    assert "not JSON" in reason_of(write(upload, line))


def test_a_line_of_50_mb_is_bad_and_its_neighbours_are_not(upload: Path) -> None:
    with upload.open("wb") as file:
        file.write(b'{"messages": [{"role": "user", "content": "')
        for _ in range(50):
            file.write(b"x" * MB)
        file.write(b'"}]}\n' + json.dumps({"messages": CHAT}).encode())
    long, good = read_rows(upload, "jsonl")
    assert isinstance(long, BadRow)
    assert str(long) == "line 1: the line is longer than 10 MB"
    assert good == Row(number=2, messages=CHAT)


def test_an_empty_file_is_refused(upload: Path) -> None:
    upload.touch()
    for format in ("jsonl", "csv", "parquet"):
        with pytest.raises(InvalidInput, match="the file is empty"):
            read_rows(upload, format)


def test_an_unknown_format_is_refused(upload: Path) -> None:
    with pytest.raises(InvalidInput, match="format 'xml' is not one of jsonl, csv, parquet"):
        read_rows(write(upload, "x"), "xml")


def write_csv(path: Path, *rows: list[str]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_csv_fields_may_hold_commas_quotes_and_lines(upload: Path) -> None:
    write_csv(upload, ["prompt", "completion", "id"], ['a,\n"b"', "c", "1"], ["d", "e", "2"])
    first, second = read_rows(upload, "csv")
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert first.messages[0]["content"] == 'a,\n"b"'
    assert (first.number, second.number, second.metadata) == (2, 4, {"id": "2"})


def test_csv_messages_are_json(upload: Path) -> None:
    write_csv(upload, ["messages"], [json.dumps(CHAT)], ["[{]"])
    good, bad = read_rows(upload, "csv")
    assert good == Row(number=2, messages=CHAT)
    assert str(bad).startswith("line 3: messages is not JSON")


def test_a_csv_line_with_another_number_of_fields_is_bad(upload: Path) -> None:
    bad, good = read_rows(write(upload, "prompt,completion", "a", "b,c"), "csv")
    assert str(bad) == "line 2: the line has 1 fields, the header 2"
    assert isinstance(good, Row)


def test_a_csv_field_in_another_encoding_is_bad(upload: Path) -> None:
    bad, good = read_rows(write(upload, "prompt,completion", b"a,caf\xe9", "b,c"), "csv")
    assert str(bad) == "line 2: completion is not UTF-8 text"
    assert isinstance(good, Row)


def test_a_csv_quote_that_never_closes_is_one_bad_line(upload: Path) -> None:
    good, bad = read_rows(write(upload, "prompt,completion", "b,c", '"a,b'), "csv")
    assert isinstance(good, Row)
    assert str(bad).startswith("line 3: not CSV: ")


def test_a_csv_line_over_the_limit_is_bad_and_the_rest_is_read(upload: Path) -> None:
    write(upload, "prompt,completion", "a," + "x" * 11 * MB, "b,c", "d," + "x" * 11 * MB)
    rows = sorted(read_rows(upload, "csv"), key=lambda row: row.number)
    assert [str(row) for row in rows if isinstance(row, BadRow)] == [
        "line 2: the line is longer than 10 MB",
        "line 4: the line is longer than 10 MB",
    ]
    assert [row.number for row in rows if isinstance(row, Row)] == [3]


def test_a_csv_without_the_columns_is_refused(upload: Path) -> None:
    with pytest.raises(InvalidInput, match="the columns are one, two: no kind of row has these"):
        list(read_rows(write(upload, "one,two", "a,b"), "csv"))


def test_a_csv_header_in_another_encoding_is_refused(upload: Path) -> None:
    with pytest.raises(InvalidInput, match="the first line is not UTF-8 text: save the file as"):
        list(read_rows(write(upload, b"prompt,completion,caf\xe9", "a,b,c"), "csv"))


def parquet_of(path: Path, **columns: list[Any]) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


def test_parquet_gives_the_same_rows(upload: Path) -> None:
    parquet_of(upload, messages=[CHAT, CHAT[:1]], target=["a", None])
    good, bad = read_rows(upload, "parquet")
    assert good == Row(number=1, messages=CHAT, metadata={"target": "a"})
    assert str(bad) == "line 2: the row has no assistant turn: nothing to learn from"


def test_few_rows_of_parquet_are_unpacked_at_once_where_they_are_long(upload: Path) -> None:
    parquet_of(upload, prompt=["x" * 2**20] * 300, completion=["y"] * 300)
    assert upload.stat().st_size < 2**20
    assert 50 < choose_batch(parquet.ParquetFile(upload)) <= 128
    parquet_of(upload, prompt=["x" * 2**20] * 300, completion=["y" * 2**20] * 300)
    assert 25 < choose_batch(parquet.ParquetFile(upload)) <= 64  # both stand in each of them
    parquet_of(upload, prompt=["x"] * 300, completion=["y"] * 300)
    assert choose_batch(parquet.ParquetFile(upload)) == 256


def test_a_nul_in_a_map_of_parquet_is_found(upload: Path) -> None:
    texts = pa.map_(pa.string(), pa.string())
    columns = {"messages": pa.array([CHAT, CHAT]), "about": pa.array([[("a", "b\x00")], []], texts)}
    parquet.write_table(pa.table(columns), upload)
    bad, good = read_rows(upload, "parquet")
    assert str(bad) == "line 1: about has a NUL character"
    assert isinstance(good, Row)


def test_a_row_of_parquet_is_no_longer_than_a_line(upload: Path) -> None:
    parquet_of(upload, prompt=["x" * 11_000_000, "Hi"], completion=["y", "y"])
    long, short = read_rows(upload, "parquet")
    assert str(long) == "line 1: the line is longer than 10 MB"
    assert isinstance(short, Row)


def test_parquet_with_prompt_and_completion(upload: Path) -> None:
    parquet_of(upload, prompt=["Hi", None], completion=["Hey!", "x"])
    good, bad = read_rows(upload, "parquet")
    assert good == Row(number=1, messages=CHAT)
    assert str(bad) == "line 2: prompt is missing"


def test_parquet_fills_absent_message_fields_and_they_are_dropped(upload: Path) -> None:
    named = [{"role": "user", "content": "Hi", "name": "Ann"}, CHAT[1]]
    row = only(parquet_of(upload, messages=[named]), "parquet")
    assert isinstance(row, Row)
    assert row.messages == named


def test_parquet_messages_may_hold_what_json_cannot(upload: Path) -> None:
    signed = [{**CHAT[0], "raw": b"x"}, {**CHAT[1], "raw": b"y"}]
    row = only(parquet_of(upload, messages=[signed]), "parquet")
    assert isinstance(row, Row)
    written = write_rows([row], upload.with_name("rows.jsonl"))
    (back,) = read_normalised(upload.with_name("rows.jsonl"))
    assert (written.num_rows, back.key) == (1, row.key)


def test_a_cut_parquet_file_is_refused(upload: Path) -> None:
    parquet_of(upload, messages=[CHAT])
    upload.write_bytes(upload.read_bytes()[:-20])
    with pytest.raises(InvalidInput, match="not readable Parquet"):
        list(read_rows(upload, "parquet"))


def test_parquet_without_the_columns_is_refused(upload: Path) -> None:
    with pytest.raises(InvalidInput, match="the columns are words: no kind of row has these"):
        list(read_rows(parquet_of(upload, words=["a"]), "parquet"))


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("a.jsonl", b'{"messages": []}', "jsonl"),
        ("a.txt", b'\xef\xbb\xbf\n{"messages": []}', "jsonl"),
        ("a.jsonl", b"broken", "jsonl"),
        ("a.CSV", b"question,answer\n", "csv"),
        ("a.txt", b"id,prompt,completion\n", "csv"),
        ("a.txt", b'"prompt","completion"\n', "csv"),
        ("a.csv", b"PAR1....", "parquet"),
    ],
)
def test_the_format_is_told_by_content_and_name(
    upload: Path, name: str, content: bytes, format: str
) -> None:
    upload.write_bytes(content)
    assert detect_format(upload, name) == format


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.json", b'[{"messages": []}]', "one JSON array: write one object on each line"),
        ("a.xlsx", b"PK\x03\x04", "a zip or Excel file: upload JSONL, CSV or Parquet"),
        ("a.jsonl", b"\x1f\x8b\x08", "a gzip file"),
        ("a.csv", "prompt".encode("utf-16"), "UTF-16 text, not UTF-8"),
        ("a.parquet", b"hello", "neither JSONL, CSV with a header, nor Parquet"),
    ],
)
def test_a_file_of_another_format_is_refused_by_its_name(
    upload: Path, name: str, content: bytes, reason: str
) -> None:
    upload.write_bytes(content)
    with pytest.raises(InvalidInput, match=reason):
        detect_format(upload, name)


def test_rows_are_read_as_they_are_asked_for(upload: Path) -> None:
    rows = read_rows(write(upload, {"messages": CHAT}, "broken"), "jsonl")
    assert isinstance(rows, Iterator)
    assert next(rows) == Row(number=1, messages=CHAT)
