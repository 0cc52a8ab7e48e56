"""What an evaluation answered to each item, by one grader."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from webapp.evals.models import EvalResult, EvalSuite, Evaluation

DIGITS = 9  # of an item's score: equal means stay equal whatever order they were added in


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One evaluation's graded samples of one item, by id. Their mean is the item's score."""

    samples: Sequence[int]
    score: float

    @property
    def first(self) -> int:
        return self.samples[0]

    def read(self) -> EvalResult:
        return EvalResult.objects.get(pk=self.first)


def read_answers(evaluation: Evaluation, grader: str) -> dict[int, Answer]:
    """By item. A sample that failed or was not graded counts neither way; an item without any
    other is missing. The texts are left in the database: see `read_texts`.
    """
    by_item: dict[int, list[tuple[int, float]]] = {}
    graded = evaluation.results.filter(error="").values_list("pk", "index", "scores")
    for pk, index, scores in graded:
        if grader in scores:
            by_item.setdefault(index, []).append((pk, scores[grader]))
    return {index: _make_answer(samples) for index, samples in by_item.items()}


def _make_answer(samples: Sequence[tuple[int, float]]) -> Answer:
    mean = sum(score for _, score in samples) / len(samples)
    return Answer(samples=[pk for pk, _ in samples], score=round(mean, DIGITS))


def read_texts(answers: Iterable[Answer]) -> Mapping[int, str]:
    """Of their first samples by id, in one query."""
    pks = [answer.first for answer in answers]
    return dict(EvalResult.objects.filter(pk__in=pks).values_list("pk", "completion"))


def name_graders(suite: EvalSuite) -> list[str]:
    """The first one is the score."""
    return [grader["name"] for grader in suite.graders]
