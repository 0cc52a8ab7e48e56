"""The figures of an evaluation: the mean of every grader, and pass@k where items have samples."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from webapp.evals.models import EvalResult, EvalSuite, Evaluation

RIGHT = 1.0  # graders that give parts of a point are right with the whole of it


def compute_figures(suite: EvalSuite, results: Iterable[EvalResult]) -> dict[str, float]:
    """{grader: mean over all graded answers, "grader/pass@k": over items with k of them}."""
    answered = list(results)
    figures: dict[str, float] = {}
    for grader in (each["name"] for each in suite.graders):
        by_item = collect(answered, grader)
        values = [value for item in by_item for value in item]
        if values:
            figures[grader] = sum(values) / len(values)
        for k in suite.sampling.get("pass_at", ()):
            figures |= {f"{grader}/pass@{k}": value for value in average_pass(by_item, k)}
    return figures


def explain_nothing(evaluation: Evaluation) -> str:
    """Why it has no figure at all."""
    first = evaluation.results.first()
    if first is None:
        return "No prompt of it was answered."
    return first.error or "No grader of the suite has graded an answer."


def collect(results: Iterable[EvalResult], grader: str) -> list[list[float]]:
    """The scores of each item's samples. One that could not be graded counts neither way."""
    by_item: dict[int, list[float]] = defaultdict(list)
    for result in results:
        if grader in result.scores:
            by_item[result.index].append(result.scores[grader])
    return list(by_item.values())


def average_pass(items: Sequence[Sequence[float]], k: int) -> list[float]:
    """The mean over items in a list; empty where no item has k samples."""
    found = [
        estimate_pass(len(item), sum(score >= RIGHT for score in item), k)
        for item in items
        if len(item) >= k
    ]
    return [sum(found) / len(found)] if found else []


def estimate_pass(count: int, right: int, k: int) -> float:
    """That one of k samples is right, from `count` of which `right` are. Unbiased: Chen et al.
    2021, "Evaluating Large Language Models Trained on Code", 1 - C(n - c, k) / C(n, k).
    """
    if count - right < k:
        return 1.0
    return 1.0 - math.comb(count - right, k) / math.comb(count, k)
