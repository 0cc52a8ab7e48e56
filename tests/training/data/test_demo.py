"""The demo dataset, from the installed package."""

from pathlib import Path

import pytest

from training.data.batches import split_held_out
from training.data.demo import (
    DEMO_CONFIG,
    DEMO_GRADERS,
    demo_config,
    demo_rows,
    expand,
    find_bfcl,
    main,
)
from training.data.rows import Row
from training.data.validate import read_normalised, validate
from training.recipes.graders import check_grader
from training.recipes.grading import grade
from training.recipes.sft import SftConfig


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(demo_rows(find_bfcl()))


def test_there_are_400_rows_of_question_and_call(rows: list[Row]) -> None:
    assert len(rows) == 400
    roles = {tuple(message["role"] for message in row.messages) for row in rows}
    assert roles == {("system", "user", "assistant")}


def test_every_answer_is_graded_right_and_is_valid_json(rows: list[Row]) -> None:
    for row in rows:
        answer = row.messages[-1]["content"]
        assert grade("accepted_call", answer, row.metadata["target"]) == 1.0
        assert grade("valid_json", answer, "") == 1.0


def test_prompts_stay_short(rows: list[Row]) -> None:
    lengths = [sum(len(message["content"]) for message in row.messages) for row in rows]
    assert max(lengths) < 1000
    assert sum(lengths) / len(lengths) < 650


def test_the_written_file_is_the_same_every_time_and_valid(tmp_path: Path, rows: list[Row]) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    assert main([str(first)]) == main([str(second)]) == 0
    assert first.read_bytes() == second.read_bytes()
    report = validate(first, "jsonl")
    assert (report.num_rows, report.num_bad, report.num_duplicates) == (400, 0, 0)
    assert [row.key for row in read_normalised(first)] == [row.key for row in rows]


def test_the_command_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: python -m training.data.demo DEST.jsonl" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none" / "rows.jsonl")]) == 1
    assert "No such file or directory" in capsys.readouterr().err


def test_the_demos_settings_are_valid() -> None:
    assert SftConfig.from_dict(DEMO_CONFIG).steps == 40
    assert [check_grader(**grader) for grader in DEMO_GRADERS] == [{}, {}]


def test_the_demo_samples_questions_that_its_run_holds_out(rows: list[Row]) -> None:
    config = SftConfig.from_dict(demo_config(rows))
    train, held_out = split_held_out(rows, share=config.held_out_share, seed=config.seed)
    assert (len(train), len(held_out)) == (306, 94)
    asked = [tuple(row.messages[:2]) for row in held_out[:4]]
    assert list(config.sampling.prompts) == asked


def test_accepted_values_inside_objects_are_combined() -> None:
    assert expand({"school": ["A", "B"], "year": [1]}) == [
        {"school": "A", "year": 1},
        {"school": "B", "year": 1},
    ]
    assert expand([{"field": ["age"]}, {"field": ["job", "work"]}]) == [
        [{"field": "age"}, {"field": "job"}],
        [{"field": "age"}, {"field": "work"}],
    ]
    assert expand(["Apple", "Microsoft"]) == [["Apple", "Microsoft"]]
