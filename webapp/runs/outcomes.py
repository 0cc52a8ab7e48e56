"""How operations stand, as those that wait for them need it."""

from collections.abc import Iterable
from dataclasses import dataclass

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
    whose = ("pk", "run__project_id", "run__base_model_id")
    outcomes = (
        Outcome(
            request_id=f"op-{pk}",
            project_id=project_id,
            base_model_id=base_model_id,
            is_over=status in ENDED,
            result=bytes(result or b""),
            content_type=content_type,
            error=error or _find_error(status, result),
            category=category or "user",
        )
        for pk, project_id, base_model_id, status, result, content_type, error, category in (
            rows.values_list(*whose, "status", "result", "content_type", "error", "error_category")
        )
    )
    return {outcome.request_id: outcome for outcome in outcomes}


def _find_error(status: str, result: bytes | None) -> str:
    if status == Operation.Status.FAILED:
        return "internal error"
    return FORGOTTEN if status == Operation.Status.DONE and result is None else ""
