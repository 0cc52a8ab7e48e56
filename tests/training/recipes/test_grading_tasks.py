"""A scorer that cannot read an answer does not like it; its other faults say nothing of it."""

import pytest

from training.recipes.grading_tasks import score_entry


class Scorer:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def score_answer(self, answer: str, entry: object) -> float:
        raise self.error


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyError("no"), ZeroDivisionError(), RecursionError(), TypeError()]
)
def test_a_scorer_that_stumbles_over_an_answer_gives_nothing(error: Exception) -> None:
    assert score_entry(Scorer(error), "1", {}) == 0


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), SystemExit(1), OSError()])
def test_what_says_nothing_of_the_answer_is_no_score(error: BaseException) -> None:
    with pytest.raises(type(error)):
        score_entry(Scorer(error), "1", {})
