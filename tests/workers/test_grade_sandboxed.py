"""Graders that need the sandbox, asked as recipes and evaluations ask them."""

import json
from typing import Any

import pytest

from training.recipes.grading import Answer
from workers.grade import Graded, grade_answers, grade_with_notes
from workers.sandbox import Job, open_sandbox

RIGHT, WRONG = 1.0, 0.0
PROMPT = [{"role": "user", "content": "?"}]
SCHEMA = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}


def grade_one(grader: dict[str, Any], completion: str, target: str = "", **row: Any) -> Graded:
    answer = Answer(messages=PROMPT, completion=completion, target=target, metadata=row)
    return grade_with_notes([grader], [answer])[0]


@pytest.mark.parametrize(
    ("completion", "target", "score"),
    [
        ("The answer is $\\frac{1}{2}$.", "0.5", RIGHT),
        ("\\boxed{x^2 + 2x + 1}", "$(x+1)^2$", RIGHT),
        ("$\\sqrt{8}$", "2\\sqrt{2}", RIGHT),
        ("so it is 1/2", "\\frac{2}{4}", RIGHT),
        ("$\\{1, 2\\}$", "$\\{2, 1\\}$", RIGHT),
        ("It is 7", "8", WRONG),
        ("I do not know.", "8", WRONG),
        ("", "8", WRONG),
    ],
)
def test_math_is_right_when_it_is_equal(completion: str, target: str, score: float) -> None:
    assert grade_one({"name": "math"}, completion, target).scores == {"math": score}


def test_a_target_that_is_no_mathematics_is_said() -> None:
    assert "cannot be read as mathematics" in grade_one({"name": "math"}, "1", "???").error


def test_a_power_tower_is_ended_and_worth_nothing() -> None:
    grader = {"name": "math", "seconds": 1.0}
    graded = grade_one(grader, "$9^{9^{9^{9^{9}}}}$", "2")
    assert graded.scores.get("math", WRONG) == WRONG


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ('{"name": "Ada"}', RIGHT),
        ('Here:\n```json\n{"name": "Ada"}\n```', RIGHT),
        ('{"name": 1}', WRONG),
        ("{}", WRONG),
        ("Ada", WRONG),
    ],
)
def test_an_answer_is_valid_under_a_schema_of_the_settings_or_of_the_row(
    completion: str, score: float
) -> None:
    own = {"name": "json_schema", "schema": SCHEMA}
    assert grade_one(own, completion).scores == {"json_schema": score}
    for schema in (SCHEMA, json.dumps(SCHEMA)):
        graded = grade_one({"name": "json_schema"}, completion, schema=schema)
        assert graded.scores == {"json_schema": score}


def test_what_is_wrong_with_json_is_noted() -> None:
    graded = grade_one({"name": "json_schema", "schema": SCHEMA}, '{"name": 1}')
    assert graded.notes == {"json_schema": "At $.name: 1 is not of type 'string'"}


@pytest.mark.parametrize("schema", ["{", {"type": "taste"}, [1], "7"])
def test_a_schema_that_is_none_is_the_rows_fault(schema: Any) -> None:
    assert "schema" in grade_one({"name": "json_schema"}, "1", schema=schema).error


def test_tests_may_stand_in_the_row_as_text_or_as_a_list() -> None:
    code = "def double(n):\n    return 2 * n"
    for tests in ("assert double(2) == 4", '["assert double(2) == 4"]', ["assert double(2) == 4"]):
        assert grade_one({"name": "unit_tests"}, code, tests=tests).scores == {"unit_tests": RIGHT}
    check = "def check(candidate):\n    assert candidate(2) == 5"
    graded = grade_one({"name": "unit_tests"}, code, tests=check, entry_point="double")
    assert graded.scores == {"unit_tests": WRONG}
    assert graded.notes["unit_tests"].startswith("Line 2 of the tests")
    assert "no column tests" in grade_one({"name": "unit_tests"}, code).error


def make_rows(task: str, size: int = 2, **config: Any) -> list[dict[str, Any]]:
    private = {"task": task, "seed": 1, "size": size, "config": config}
    outcome = open_sandbox().run(Job(kind="make_rows", private=private, memory_mib=1024))
    return list(outcome["rows"])


@pytest.mark.parametrize(
    "task", ["chain_sum", "gcd", "letter_counting", "spell_backward", "countdown", "n_queens"]
)
def test_a_task_scores_its_own_answers_right_and_says_nothing_for_nothing(task: str) -> None:
    grader = {"name": "reasoning_gym"}
    for row in make_rows(task):
        for completion in (row["target"], f"Well. <answer>{row['target']}</answer>"):
            assert grade_one(grader, completion, **row).scores == {"reasoning_gym": RIGHT}
        assert grade_one(grader, "no idea, really", **row).scores["reasoning_gym"] < 0.5


def test_a_number_is_found_in_a_sentence() -> None:
    [row] = make_rows("chain_sum", size=1)
    graded = grade_one({"name": "reasoning_gym"}, f"The answer is {row['target']}.", **row)
    assert graded.scores == {"reasoning_gym": RIGHT}


def test_the_same_seed_makes_the_same_rows() -> None:
    assert make_rows("gcd", size=3) == make_rows("gcd", size=3)


@pytest.mark.parametrize(
    "completion",
    [
        "__import__('os')._exit(0)",
        "().__class__.__base__.__subclasses__()",
        "9**9**9**9",
        "factorial(99999)",
        "(9**64)**(9**64)",
    ],
)
def test_an_answer_that_would_run_is_worth_nothing_where_answers_are_evaluated(
    completion: str,
) -> None:
    for task in ("countdown", "n_queens"):
        [row] = make_rows(task, size=1)
        graded = grade_one({"name": "reasoning_gym"}, completion, **row)
        assert graded.scores == {"reasoning_gym": WRONG}


def test_tasks_that_cannot_be_scored_are_refused_and_say_why() -> None:
    for task, why in (("rush_hour", "no answers"), ("game_of_life_halting", "any text")):
        row: dict[str, Any] = {
            "task": task,
            "entry": {"question": "", "answer": "", "metadata": {}},
        }
        assert why in grade_one({"name": "reasoning_gym"}, "1", **row).error
    assert "no column task" in grade_one({"name": "reasoning_gym"}, "1", entry={}).error


def test_hundreds_of_answers_are_graded_at_once() -> None:
    answers = [Answer(messages=PROMPT, completion=f"${n}$", target="7") for n in range(100)]
    scores = grade_answers([{"name": "math"}, {"name": "exact_match"}], answers)
    assert [number for number, each in enumerate(scores) if each["math"]] == [7]
