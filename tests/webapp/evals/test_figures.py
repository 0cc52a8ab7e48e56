"""Means and pass@k, against tables made by hand."""

from itertools import combinations

import pytest

from webapp.evals.figures import compute_figures, estimate_pass
from webapp.evals.models import EvalResult, EvalSuite


def result(index: int, sample: int, **scores: float) -> EvalResult:
    return EvalResult(index=index, sample=sample, scores=scores)


@pytest.mark.parametrize(
    ("count", "right", "k", "chance"),
    [
        (4, 2, 1, 0.5),
        (4, 2, 2, 5 / 6),  # of six pairs one is wrong twice
        (4, 2, 3, 1.0),
        (4, 0, 4, 0.0),
        (10, 3, 5, 1 - 21 / 252),
        (200, 1, 100, 0.5),
        (1, 1, 1, 1.0),
    ],
)
def test_pass_at_k_is_the_chance_that_one_of_k_is_right(
    count: int, right: int, k: int, chance: float
) -> None:
    assert estimate_pass(count, right, k) == pytest.approx(chance)


def test_pass_at_k_is_what_counting_every_choice_gives() -> None:
    answers = [True, True, False, False, False, False]
    for k in range(1, 7):
        choices = list(combinations(answers, k))
        share = sum(any(choice) for choice in choices) / len(choices)
        assert estimate_pass(6, 2, k) == pytest.approx(share)


def test_a_suite_of_several_samples_has_the_mean_and_pass_at_k_of_every_grader() -> None:
    suite = EvalSuite(
        graders=[{"name": "numeric"}, {"name": "math"}],
        sampling={"num_samples": 2, "pass_at": [1, 2]},
    )
    results = [
        result(0, 0, numeric=1.0, math=1.0),
        result(0, 1, numeric=0.0, math=0.5),
        result(1, 0, numeric=0.0, math=0.0),
        result(1, 1, numeric=0.0, math=0.5),
    ]
    assert compute_figures(suite, results) == {
        "numeric": 0.25,
        "numeric/pass@1": 0.25,
        "numeric/pass@2": 0.5,
        "math": 0.5,
        "math/pass@1": 0.25,  # half a point is not right
        "math/pass@2": 0.5,
    }


def test_an_answer_that_a_grader_could_not_grade_counts_neither_way() -> None:
    suite = EvalSuite(graders=[{"name": "numeric"}, {"name": "llm_judge"}], sampling={})
    results = [result(0, 0, numeric=1.0, llm_judge=0.4), result(1, 0, numeric=0.0)]
    assert compute_figures(suite, results) == {"numeric": 0.5, "llm_judge": 0.4}


def test_an_item_with_fewer_samples_than_k_says_nothing_of_k() -> None:
    suite = EvalSuite(graders=[{"name": "numeric"}], sampling={"num_samples": 2, "pass_at": [2]})
    results = [result(0, 0, numeric=1.0), result(1, 0, numeric=0.0), result(1, 1, numeric=0.0)]
    assert compute_figures(suite, results)["numeric/pass@2"] == 0.0
    assert "numeric/pass@2" not in compute_figures(suite, results[:1])
