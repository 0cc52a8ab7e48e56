"""What evaluations say of checkpoints. Their app stands above this one, so it is found by name."""

from typing import Any

from django.apps import apps
from django.db.models import QuerySet


def read_evaluations() -> QuerySet[Any]:
    """Without the suites' items, which may be megabytes."""
    evaluations = apps.get_model("evals", "Evaluation")._default_manager
    return evaluations.select_related("suite").defer("suite__items").order_by("-created_at")


def find_score(evaluation: Any) -> float | None:
    """By the suite's first grader. None: nothing is graded."""
    score: float | None = evaluation.first_score
    return score


def describe_score(evaluation: Any) -> str:
    score = find_score(evaluation)
    if score is None:
        return str(evaluation.status)
    return f"{100 * score:.1f} % {evaluation.suite.first_grader.replace('_', ' ')}"
