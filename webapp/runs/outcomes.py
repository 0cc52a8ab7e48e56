"""How operations stand, as those that wait for them need it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from webapp.runs.models import Operation
from webapp.runs.queue import ENDED

FORGOTTEN = (
    "The result of this request was kept for a day after the end of its run, and is forgotten now."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a request stands, as a parked poll needs it."""

    request_id: str
    project_id: str
    base_model_id: str
    is_over: bool
    run_id: str = ""  # of an operation
    seq: int = 0
    result: bytes = b""
    content_type: str = ""
    error: str = ""  # empty: it succeeded, or is not over
    category: str = ""
    is_forgotten: bool = False  # it ended long ago, and even its row is gone


def read_outcomes(request_ids: Iterable[str]) -> dict[str, Outcome]:
    """How these operations stand, in one query; unknown ids are left out."""
    pks = [
        int(number)
        for prefix, _, number in (request_id.partition("-") for request_id in request_ids)
        if prefix == "op" and number.isdecimal() and len(number) <= 18
    ]
    rows = Operation.objects.filter(pk__in=pks).exclude(status=Operation.Status.REFUSED)
    columns = (
        *("pk", "run_id", "seq", "run__project_id", "run__base_model_id"),
        *("status", "result", "content_type", "error", "error_category"),
    )
    outcomes = [_describe(row) for row in rows.values(*columns)]
    return {outcome.request_id: outcome for outcome in outcomes}


def _describe(row: Mapping[str, Any]) -> Outcome:
    status, result = row["status"], row["result"]
    return Outcome(
        request_id=f"op-{row['pk']}",
        project_id=row["run__project_id"],
        base_model_id=row["run__base_model_id"],
        run_id=row["run_id"],
        seq=row["seq"],
        is_over=status in ENDED,
        result=bytes(result or b""),
        content_type=row["content_type"],
        error=row["error"] or _find_error(status, result),
        category=row["error_category"] or "user",
    )


def _find_error(status: str, result: bytes | None) -> str:
    if status == Operation.Status.FAILED:
        return "internal error"
    return FORGOTTEN if status == Operation.Status.DONE and result is None else ""
