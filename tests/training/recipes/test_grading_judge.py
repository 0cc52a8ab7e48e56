"""What a judge is asked, and what is read from its words."""

import pytest

from training.errors import InvalidInput
from training.recipes.grading import Answer
from training.recipes.grading_judge import read_verdict, write_question

GRADER = {"name": "llm_judge", "judge": "tiny", "rubric": "It is polite."}
ANSWER = Answer(
    messages=[{"role": "user", "content": "Say hello."}], completion="Go away.", target="Hello."
)


@pytest.mark.parametrize(
    ("words", "score"),
    [
        ("It is polite.\nScore: 7", 0.7),
        ("**Score:** 10", 1.0),
        ("Score: 0", 0.0),
        ("score = 3.5", 0.35),
        ("Score: 3,5", 0.35),
        ("I would first say score: 2, but then again.\nScore: 8/10", 0.8),
        ("Rating: 4 out of 5", 0.8),
        ("The score is 6.", 0.6),
        ("Good.\n\n9", 0.9),
        ("I give it 7/10 for style.", 0.7),
        ("Final grade - 5", 0.5),
    ],
)
def test_the_score_of_a_judge_is_what_it_said_last(words: str, score: float) -> None:
    assert read_verdict(words) == pytest.approx(score)


@pytest.mark.parametrize(
    "words",
    ["", "It is polite.", "Score: 11", "Score: -1", "Score: high", "9 of them are polite", "1/0"],
)
def test_words_without_a_score_in_range_are_an_error_that_quotes_them(words: str) -> None:
    with pytest.raises(InvalidInput, match="gave no score from 0 to 10"):
        read_verdict(words)


def test_a_judge_reads_the_rubric_what_was_asked_the_answer_and_the_reference() -> None:
    [message] = write_question(GRADER, ANSWER)
    for part in ("It is polite.", "Say hello.", "Go away.", "for reference:\nHello."):
        assert part in message["content"]


def test_a_judge_does_not_see_a_reference_that_is_hidden_or_that_there_is_not() -> None:
    assert "reference" not in write_question({**GRADER, "reference": "hide"}, ANSWER)[0]["content"]
    without = Answer(messages=ANSWER.messages, completion="x")
    assert "reference" not in write_question(GRADER, without)[0]["content"]


def test_a_judge_of_a_conversation_reads_who_said_what() -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    [message] = write_question(GRADER, Answer(messages=messages, completion="Hi."))
    assert "system: Be short.\nuser: Hi" in message["content"]


def test_braces_in_an_answer_are_just_braces() -> None:
    [message] = write_question(GRADER, Answer(messages=ANSWER.messages, completion="{rubric}"))
    assert "{rubric}" in message["content"]
