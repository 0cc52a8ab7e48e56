"""Kinds of rows, in the forms that datasets of the field have them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from training.data.previews import preview
from training.data.rows import BadRow, Row, detect_kinds, read_rows
from training.data.tokenizer import ChatTokenizer
from training.data.validate import good_rows, read_normalised, validate, write_rows

TINY = Path("tests/assets/tiny-chatml-1m")
ASKED = [{"role": "user", "content": "Capital of France?"}]
PARIS = [{"role": "assistant", "content": "Paris"}]
LYON = [{"role": "assistant", "content": "Lyon"}]
PAIR = {"chosen": PARIS, "rejected": LYON}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def parse(upload: Path, kind: str, columns: dict[str, Any]) -> Row | BadRow:
    (row,) = read_rows(write(upload, columns), "jsonl", kind)
    return row


@pytest.mark.parametrize(
    ("columns", "kinds"),
    [
        ({"messages": ASKED + PARIS}, ("conversation",)),
        ({"messages": ASKED + PARIS, "target": "Paris"}, ("conversation",)),
        ({"messages": ASKED, "target": "Paris"}, ("prompt",)),
        ({"messages": ASKED}, ("prompt",)),
        ({"messages": [*ASKED, *PARIS, *ASKED], "answer": "Paris"}, ("prompt",)),
        ({"prompt": "a", "completion": "b"}, ("prompt_completion",)),
        ({"prompt": "a", "response": "b"}, ("prompt_completion",)),
        ({"instruction": "a", "input": "", "output": "b"}, ("prompt_completion",)),
        ({"prompt": "a", "completion": "b", "target": "b"}, ("prompt_completion",)),
        ({"prompt": "a", "target": "b"}, ("prompt",)),
        ({"problem": "a", "solution": "b"}, ("prompt",)),
        ({"prompt": "a"}, ("prompt",)),
        ({"question": "a", "answer": "b"}, ("prompt_completion", "prompt")),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ("preference",)),
        ({"chosen": ASKED + PARIS, "rejected": ASKED + LYON}, ("preference",)),
        ({"text": "Once upon a time", "label": 3}, ("text",)),
        ({"one": 1}, ()),
    ],
)
def test_the_columns_say_what_a_row_is(
    upload: Path, columns: dict[str, Any], kinds: tuple[str, ...]
) -> None:
    assert detect_kinds(write(upload, columns, columns), "jsonl") == kinds


def test_a_line_of_another_kind_does_not_change_what_the_file_is(upload: Path) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert detect_kinds(write(upload, {"text": "x"}, pair, pair, 7), "jsonl") == ("preference",)
    rows = [{"messages": ASKED + PARIS}, *[{"prompt": "a", "completion": "b"}] * 3]
    assert detect_kinds(write(upload, *rows), "jsonl") == ("conversation",)
    assert validate(upload, "jsonl", "conversation").num_rows == 4


def test_a_csv_and_a_parquet_file_are_told_by_their_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,chosen,rejected\nHi,"[{""role"": 1",b\n')
    assert detect_kinds(tmp_path / "a.csv", "csv") == ("preference",)
    table = pa.table({"chosen": [ASKED + PARIS], "rejected": [ASKED + LYON]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert detect_kinds(tmp_path / "a.parquet", "parquet") == ("preference",)
    (row,) = read_rows(tmp_path / "a.parquet", "parquet", "preference")
    assert row == Row(number=1, messages=ASKED, metadata=PAIR)


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "Capital of France?", "chosen": "Paris", "rejected": "Lyon"},
        {"prompt": ASKED, "chosen": PARIS, "rejected": LYON},
        {"chosen": ASKED + PARIS, "rejected": ASKED + LYON},
        {"prompt": "Capital of France?", "chosen": ASKED + PARIS, "rejected": ASKED + LYON},
        {"messages": ASKED, "chosen": PARIS, "rejected": LYON},
        {
            "chosen": "\n\nHuman: Capital of France?\n\nAssistant: Paris",
            "rejected": "\n\nHuman: Capital of France?\n\nAssistant: Lyon",
        },
        {"question": "Capital of France?", "chosen": "Paris", "rejected": "Lyon"},
    ],
)
def test_every_way_to_write_a_pair_becomes_the_same_row(
    upload: Path, columns: dict[str, Any]
) -> None:
    row = parse(upload, "preference", columns | {"score": 3})
    assert row == Row(number=1, messages=ASKED, metadata={**PAIR, "score": 3})


def test_a_pair_may_differ_in_a_later_turn(upload: Path) -> None:
    head = [*ASKED, *PARIS, {"role": "user", "content": "Sure?"}]
    columns = {"chosen": head + PARIS, "rejected": head + LYON}
    assert parse(upload, "preference", columns) == Row(number=1, messages=head, metadata=PAIR)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"prompt": "a", "chosen": "b"}, "rejected is missing: a pair needs both sides"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"chosen": "b", "rejected": "c"}, "prompt is missing"),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, "chosen is empty"),
        ({"prompt": "a", "chosen": 1, "rejected": "b"}, "chosen is not text but a number"),
        ({"chosen": ASKED + PARIS, "rejected": ASKED}, "rejected has no answer of its own"),
        ({"chosen": PARIS, "rejected": [*PARIS, *ASKED]}, "message 1 is the assistant's"),
        (
            {"prompt": "a", "chosen": [*PARIS, *ASKED], "rejected": "b"},
            "chosen ends with the user's message, not the assistant's",
        ),
        (
            {"chosen": [{"role": "bot"}], "rejected": PARIS},
            "chosen: message 1 has the role 'bot'",
        ),
    ],
)
def test_a_pair_that_is_none_says_why(upload: Path, columns: dict[str, Any], reason: str) -> None:
    row = parse(upload, "preference", columns)
    assert isinstance(row, BadRow)
    assert str(row).startswith(f"line 1: {reason}")


@pytest.mark.parametrize(
    ("columns", "target"),
    [
        ({"prompt": "Capital of France?", "target": "Paris"}, "Paris"),
        ({"question": "Capital of France?", "answer": "Paris"}, "Paris"),
        ({"messages": ASKED, "reference": "Paris"}, "Paris"),
        ({"prompt": ASKED, "ground_truth": 42}, "42"),
        ({"prompt": ASKED, "target": {"name": "f"}}, '{"name":"f"}'),
        ({"prompt": ASKED, "target": None}, None),
        ({"prompt": ASKED}, None),
    ],
)
def test_a_prompt_has_its_reference_answer_as_text(
    upload: Path, columns: dict[str, Any], target: str | None
) -> None:
    row = parse(upload, "prompt", columns | {"tests": ["x"]})
    expected = {"tests": ["x"]} | ({"target": target} if target else {})
    assert row == Row(number=1, messages=ASKED, metadata=expected)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"messages": ASKED + PARIS}, "the prompt ends with the assistant's message"),
        ({"messages": []}, "the prompt has no message"),
        ({"target": "b"}, "prompt is missing"),
        ({"prompt": "a", "target": "  "}, "target is empty"),
    ],
)
def test_what_asks_nothing_is_no_prompt(upload: Path, columns: dict[str, Any], reason: str) -> None:
    row = parse(upload, "prompt", columns)
    assert isinstance(row, BadRow)
    assert reason in str(row)


def test_an_instruction_with_its_input_is_one_question(upload: Path) -> None:
    columns = {"instruction": "Add.", "input": "2 and 3", "output": "5", "id": 1}
    row = parse(upload, "prompt_completion", columns)
    assert isinstance(row, Row)
    assert [message["content"] for message in row.messages] == ["Add.\n\n2 and 3", "5"]
    assert row.metadata == {"id": 1}
    bare = parse(upload, "prompt_completion", {"instruction": "Add.", "input": "", "output": "5"})
    assert isinstance(bare, Row)
    assert bare.messages[0]["content"] == "Add."


@pytest.mark.parametrize(("text", "reason"), [(None, "missing"), ("", "empty"), (7, "not text")])
def test_a_text_row_needs_text(upload: Path, text: Any, reason: str) -> None:
    row = parse(upload, "text", {"text": text})
    assert isinstance(row, BadRow)
    assert reason in str(row)


ROWS: dict[str, list[dict[str, Any]]] = {
    "conversation": [{"messages": ASKED + PARIS, "id": 1}],
    "prompt_completion": [{"prompt": "a", "completion": "b"}, {"question": "c", "answer": "d"}],
    "preference": [{"prompt": "a", "chosen": "b", "rejected": "c"}],
    "prompt": [{"prompt": "a", "target": "b", "tests": ["t"]}, {"prompt": "c"}],
    "text": [{"text": "Once upon a time", "source": "x"}],
}


@pytest.mark.parametrize("kind", ROWS)
def test_normalised_rows_of_each_kind_read_back_and_are_an_upload_too(
    tmp_path: Path, kind: str
) -> None:
    first = list(read_rows(write(tmp_path / "up.jsonl", *ROWS[kind]), "jsonl", kind))
    written = write_rows(good_rows(first), tmp_path / "rows.jsonl")
    assert list(read_normalised(tmp_path / "rows.jsonl")) == first
    again = read_rows(tmp_path / "rows.jsonl", "jsonl", kind)
    assert write_rows(good_rows(again), tmp_path / "again.jsonl") == written


def test_rows_of_all_kinds_are_told_apart_by_what_they_say(upload: Path) -> None:
    pairs = [{"prompt": "a", "chosen": "b", "rejected": side} for side in "cdc"]
    assert validate(write(upload, *pairs), "jsonl", "preference").num_duplicates == 1
    texts = [{"text": "a"}, {"text": "b"}, {"text": "a"}]
    report = validate(write(upload, *texts), "jsonl", "text")
    assert (report.num_duplicates, report.columns, report.max_characters) == (1, {}, 1)


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer.load(TINY)


def learned(entry: dict[str, Any]) -> str:
    return "".join(token["text"] for token in entry["tokens"] if token["weight"])


def shown(entry: dict[str, Any]) -> str:
    return "".join(token["text"] for token in entry["tokens"])


def test_a_preview_shows_both_answers_of_a_pair(upload: Path, tokenizer: ChatTokenizer) -> None:
    row = parse(upload, "preference", {"messages": [*ASKED, *PARIS, *ASKED], **PAIR})
    assert isinstance(row, Row)
    chosen, rejected = preview([row], tokenizer, kind="preference")
    assert (chosen["part"], rejected["part"]) == ("chosen", "rejected")
    assert (learned(chosen), learned(rejected)) == ("Paris<|im_end|>", "Lyon<|im_end|>")


def test_a_preview_of_a_prompt_learns_nothing_and_of_a_text_everything(
    upload: Path, tokenizer: ChatTokenizer
) -> None:
    row = parse(upload, "prompt", {"prompt": "What is 2 + 3?", "target": "5"})
    assert isinstance(row, Row)
    (entry,) = preview([row], tokenizer, kind="prompt")
    assert (learned(entry), entry["target"]) == ("", "5")
    assert shown(entry).endswith("<|im_start|>assistant\n")
    text = parse(upload, "text", {"text": "one two three"})
    assert isinstance(text, Row)
    (entry,) = preview([text], tokenizer, kind="text")
    assert (shown(entry), entry["num_weighted"]) == ("one two three", entry["num_tokens"] - 1)
