"""Answers graded by several graders at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from training.errors import InvalidInput
from training.recipes.grading import Answer
from training.recipes.grading_judge import Heard
from workers.grade import grade_answers, grade_with_notes


def answer(completion: str, target: str = "5", **metadata: Any) -> Answer:
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    return Answer(messages=messages, completion=completion, target=target, metadata=metadata)


class SayingJudge:
    """Says the same of everything that it is asked."""

    def __init__(self, words: str) -> None:
        self.words, self.questions = words, list[Any]()

    def ask_all(
        self, questions: Sequence[Sequence[Mapping[str, Any]]], *, max_tokens: int
    ) -> list[Callable[[], Heard]]:
        self.questions += questions
        return [lambda: Heard(text=self.words, digest="3fa2") for _ in questions]


def test_every_answer_gets_a_score_from_every_grader() -> None:
    graders: list[Any] = [{"name": "numeric"}, {"name": "exact_match", "ignore_case": True}]
    assert grade_answers(graders, [answer("It is 5."), answer("5"), answer("6")]) == [
        {"numeric": 1.0, "exact_match": 0.0},
        {"numeric": 1.0, "exact_match": 1.0},
        {"numeric": 0.0, "exact_match": 0.0},
    ]


def test_a_grader_may_compare_with_another_column_of_the_row() -> None:
    grader = {"name": "exact_match", "column": "solution"}
    assert grade_answers([grader], [answer("9", solution=9)]) == [{"exact_match": 1.0}]


def test_a_row_without_what_a_grader_needs_is_that_answers_error_alone() -> None:
    good, bad = grade_with_notes([{"name": "numeric"}], [answer("5"), answer("5", "five")])
    assert (good.scores, good.error) == ({"numeric": 1.0}, "")
    assert bad.scores == {}
    assert bad.error == "numeric: the target 'five' has no number: use another grader."


def test_what_a_judge_says_is_kept_with_its_score() -> None:
    judge = SayingJudge("Short and right.\nScore: 9")
    grader = {"name": "llm_judge", "judge": "tiny", "rubric": "It is right."}
    [graded] = grade_with_notes([grader], [answer("5")], judge=lambda name: judge)
    assert graded.scores == {"llm_judge": 0.9}
    assert graded.notes == {"llm_judge": "Short and right.\nScore: 9"}
    assert graded.judges == {"llm_judge": "3fa2"}


def test_a_judge_that_cannot_be_understood_is_an_error_and_no_score() -> None:
    judge = SayingJudge("I like it.")
    grader = {"name": "llm_judge", "judge": "tiny", "rubric": "It is right."}
    both = [grader, {"name": "numeric"}]
    [graded] = grade_with_notes(both, [answer("5")], judge=lambda name: judge)
    assert graded.scores == {"numeric": 1.0}
    assert "it said 'I like it.'" in graded.error


def test_without_anybody_to_ask_a_judge_is_refused() -> None:
    grader = {"name": "llm_judge", "judge": "tiny", "rubric": "It is right."}
    with pytest.raises(InvalidInput, match="nothing here can ask a judge"):
        grade_answers([grader], [answer("5")])


def test_whoever_wants_it_to_end_ends_it() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grade_answers([{"name": "numeric"}], [answer("5")], keep_going=stop)
