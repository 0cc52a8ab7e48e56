"""How operations stand, as those that wait for them need it."""

from collections.abc import Iterable
from dataclasses import dataclass

from webapp.runs.models import Operation
from webapp.runs.queue import ENDED


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
            error=error or ("internal error" if status == Operation.Status.FAILED else ""),
            category=category,
        )
        for pk, project_id, base_model_id, status, result, content_type, error, category in (
            rows.values_list(*whose, "status", "result", "content_type", "error", "error_category")
        )
    )
    return {outcome.request_id: outcome for outcome in outcomes}
