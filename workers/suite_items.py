"""An item of a suite with an answer to it, as graders read both; and grades as rows keep them."""

from collections.abc import Mapping
from typing import Any

from training.recipes.grading import Answer
from workers.grade import Graded


def make_graded(item: Mapping[str, Any], completion: str) -> Answer:
    return Answer(
        messages=item["messages"],
        completion=completion,
        target=item.get("target", ""),
        metadata=item.get("columns", {}),
    )


def write_grades(graded: Graded) -> dict[str, Any]:
    """The columns of a result. One without scores has an error: it is never graded twice."""
    error = graded.error or ("" if graded.scores else "No grader has graded it.")
    kept = {"scores": graded.scores, "notes": graded.notes, "judges": graded.judges}
    return kept | {"error": error}
