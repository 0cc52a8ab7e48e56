"""Graders on answers as models write them."""

import pytest

from training.errors import InvalidInput
from training.recipes.graders import check_grader
from training.recipes.grading import GRADERS, grade


@pytest.mark.parametrize(
    ("name", "completion", "target", "score"),
    [
        ("exact_match", " Paris\n", "Paris", 1.0),
        ("exact_match", "paris", "Paris", 0.0),
        ("exact_match", "", "Paris", 0.0),
        ("contains", "The capital is Paris.", "Paris", 1.0),
        ("contains", "The capital is Rome.", "Paris", 0.0),
        ("numeric", "2 + 3 = 5", "5", 1.0),
        ("numeric", "The answer is 5.", "5", 1.0),
        ("numeric", "It costs $1,234.50 in all", "1234.5", 1.0),
        ("numeric", "from 10-4", "4", 1.0),
        ("numeric", "it is -4", "-4", 1.0),
        ("numeric", "it is \u22124", "-4", 1.0),
        ("numeric", "about 1.5e3", "1500", 1.0),
        ("numeric", "1, 2, 3", "#### 3", 1.0),
        ("numeric", "half is .5", "0.5", 1.0),
        ("numeric", "I do not know", "5", 0.0),
        ("numeric", "6", "5", 0.0),
        ("regex", "call me at 555-1234", r"\d{3}-\d{4}", 1.0),
        ("regex", "no number", r"\d", 0.0),
        ("valid_json", ' {"a": [1, null]}\n', "", 1.0),
        ("valid_json", "null", "", 1.0),
        ("valid_json", '{"a": NaN}', "", 0.0),
        ("valid_json", 'Sure! {"a": 1}', "", 0.0),
        ("json_equal", '{"b": 2.0, "a": [1]}', '{"a":[1],"b":2}', 1.0),
        ("json_equal", '{"a": [1, 2]}', '{"a": [2, 1]}', 0.0),
        ("json_equal", '{"a": true}', '{"a": 1}', 0.0),
        ("json_equal", '{"a": 1, "b": 2}', '{"a": 1}', 0.0),
        ("json_equal", "null", "null", 1.0),
        ("json_equal", "not json", "1", 0.0),
        ("json_equal", "[" * 500 + "]" * 500, "[" * 500 + "]" * 500, 0.0),
    ],
)
def test_an_answer_is_worth_its_score(
    name: str, completion: str, target: str, score: float
) -> None:
    assert grade(name, completion, target) == score


CALL = '{"name": "area", "arguments": {"base": [10], "unit": ["cm", ""]}}'


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ('{"name": "area", "arguments": {"base": 10, "unit": "cm"}}', 1.0),
        ('{"arguments": {"base": 10.0}, "name": "area"}', 1.0),
        ('{"name": "area", "arguments": {"unit": "cm"}}', 0.0),
        ('{"name": "area", "arguments": {"base": 10, "unit": "m"}}', 0.0),
        ('{"name": "area", "arguments": {"base": 10, "height": 5}}', 0.0),
        ('{"name": "volume", "arguments": {"base": 10}}', 0.0),
        ('{"name": "area", "arguments": [10]}', 0.0),
        ("area(10)", 0.0),
    ],
)
def test_a_call_is_right_when_each_argument_is_accepted(completion: str, score: float) -> None:
    assert grade("accepted_call", completion, CALL) == score


def test_case_and_tolerance_are_settings() -> None:
    assert grade("exact_match", "PARIS", "Paris", {"ignore_case": True}) == 1.0
    assert grade("contains", "in paris", "Paris", {"ignore_case": True}) == 1.0
    assert grade("numeric", "3.1", "3.14", {"tolerance": 0.05}) == 1.0
    assert grade("numeric", "3.0", "3.14", {"tolerance": 0.05}) == 0.0
    assert grade("regex", "Yes.", "ignored", {"pattern": "^yes", "ignore_case": True}) == 1.0


def test_an_unknown_grader_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="no grader 'bleu': use one of exact_match, contains"):
        grade("bleu", "a", "a")


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("numeric", {"tolerance": -1}, "tolerance is -1: give a number from 0"),
        ("numeric", {"tolerance": float("nan")}, "tolerance is nan"),
        ("exact_match", {"ignore_case": "yes"}, "ignore_case is 'yes': give true or false"),
        ("contains", {"case": True}, "the grader contains has no field 'case'"),
        ("regex", {"pattern": "(a"}, "pattern is not a regular expression: missing"),
        ("regex", {"pattern": "a" * 1001}, "pattern is not a pattern of at most 1000 characters"),
        ("regex", {"pattern": 5}, "pattern is not a pattern"),
    ],
)
def test_wrong_settings_are_named(name: str, given: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        check_grader(name, given)


def test_a_catastrophic_pattern_gives_up_and_says_so() -> None:
    with pytest.raises(InvalidInput, match="for more than 1 s: write it without repeats inside"):
        grade("regex", "a" * 50 + "!", "", {"pattern": "^(a|a)+$"})


def test_a_target_that_the_grader_cannot_use_is_the_suites_fault() -> None:
    with pytest.raises(InvalidInput, match="the target 'five' has no number"):
        grade("numeric", "5", "five")
    with pytest.raises(InvalidInput, match="the target 'five' is not JSON"):
        grade("json_equal", "5", "five")
    with pytest.raises(InvalidInput, match="the target '5' is not"):
        grade("accepted_call", "5", "5")
    with pytest.raises(InvalidInput, match="lists no accepted values"):
        grade("accepted_call", CALL, '{"name": "f", "arguments": {"x": 5}}')


def test_every_grader_survives_an_empty_answer() -> None:
    targets = {"regex": "x", "accepted_call": CALL}
    assert {name: grade(name, "", targets.get(name, "5")) for name in GRADERS} == dict.fromkeys(
        GRADERS, 0.0
    )
