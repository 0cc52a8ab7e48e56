"""What happened at a step: written once, drawn on the run's curves and listed below them."""

from collections.abc import Sequence
from typing import Any

from webapp.accounts.models import User
from webapp.core.events import publish, run_group
from webapp.runs.models import Run
from webapp.runs.records import Annotation

MOST = 200  # drawn and listed, the newest: more lines than that would hide the curves
WORDS = {
    Annotation.Kind.STEERING: "steered",
    Annotation.Kind.DIAGNOSTIC: "found",
    Annotation.Kind.EVALUATION: "evaluated",
}


def annotate(run: Run, step: int, kind: str, text: str, user: User | None = None) -> bool:
    """Say what happened at a step. False: it has been said, by this process or the one before."""
    _, is_new = Annotation.objects.get_or_create(
        run=run, step=step, kind=kind, text=text, defaults={"user": user}
    )
    if is_new:
        publish(run_group(run.pk), "annotations")
    return is_new


def list_annotations(run: Run) -> Sequence[Annotation]:
    """In the order of steps."""
    newest = run.annotations.select_related("user").order_by("-step", "-pk")[:MOST]
    return list(newest)[::-1]


def read_annotations(run: Run) -> dict[str, Any]:
    """For the page: the rows to list, and the same as the charts draw them."""
    rows = list_annotations(run)
    return {"annotations": rows, "marks": [_mark(row) for row in rows]}


def _mark(row: Annotation) -> dict[str, Any]:
    return {
        "step": row.step,
        "kind": row.kind,
        "word": WORDS.get(Annotation.Kind(row.kind), row.kind),
        "text": row.text,
        "at": round(row.at.timestamp(), 1),
    }
