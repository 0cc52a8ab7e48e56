"""What an evaluation answered to each item, by one grader."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from webapp.evals.models import EvalResult, EvalSuite, Evaluation

DIGITS = 9  # of an item's score: equal means stay equal whatever order they were added in


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One evaluation's graded samples of one item. Their mean is the item's score."""

    results: Sequence[EvalResult]
    score: float

    @property
    def result(self) -> EvalResult:
        return self.results[0]


def read_answers(evaluation: Evaluation, grader: str) -> dict[int, Answer]:
    """By item. A sample that failed or was not graded counts neither way; an item without any
    other is missing. The texts are left in the database: see `read_texts`.
    """
    by_item: dict[int, list[EvalResult]] = {}
    for result in evaluation.results.filter(error="").defer("completion"):
        if grader in result.scores:
            by_item.setdefault(result.index, []).append(result)
    return {
        index: Answer(
            results=results,
            score=round(sum(each.scores[grader] for each in results) / len(results), DIGITS),
        )
        for index, results in by_item.items()
    }


def read_texts(answers: Iterable[Answer]) -> Mapping[int, str]:
    """By the result's id, in one query."""
    pks = [result.pk for answer in answers for result in answer.results]
    return dict(EvalResult.objects.filter(pk__in=pks).values_list("pk", "completion"))


def name_graders(suite: EvalSuite) -> list[str]:
    """The first one is the score."""
    return [grader["name"] for grader in suite.graders]
