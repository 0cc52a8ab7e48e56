"""How operations and sampling calls stand, for polls that wait for either."""

import json
from collections.abc import Iterable, Sequence

from webapp.deployments.models import SamplingCall
from webapp.runs import queue
from webapp.runs.models import CustomLoss, Operation
from webapp.runs.outcomes import Outcome, read_outcomes
from webapp.wire.passes import JSON

Status = SamplingCall.Status

ENDED = (Status.DONE, Status.FAILED, Status.CANCELLED, Status.LOST)


def read_all(request_ids: Iterable[str]) -> dict[str, Outcome]:
    """A query for each kind; unknown ids are left out."""
    wanted = list(request_ids)
    calls = read_numbers(wanted, "call-")
    losses = [request_id for request_id in wanted if request_id.startswith("loss-")]
    outcomes = read_outcomes(wanted) if len(calls) + len(losses) < len(wanted) else {}
    outcomes |= read_losses(losses) if losses else {}
    return outcomes | (read_calls(calls) if calls else {})


def read_losses(pks: Sequence[str]) -> dict[str, Outcome]:
    """A custom loss is there as soon as it is stored: its promise is kept at once."""
    rows = CustomLoss.objects.filter(pk__in=pks).values_list("pk", "session__project_id")
    outcomes = (
        Outcome(
            request_id=pk,
            project_id=project_id,
            base_model_id="",
            is_over=True,
            result=json.dumps({"loss_id": pk, "type": "create_custom_loss"}).encode(),
            content_type=JSON,
        )
        for pk, project_id in rows
    )
    return {outcome.request_id: outcome for outcome in outcomes}


def read_calls(pks: Sequence[int]) -> dict[str, Outcome]:
    """Of those that have no row any more it is said that they are forgotten."""
    rows = SamplingCall.objects.filter(pk__in=pks).values_list(
        *("pk", "project_id", "base_model_id"),
        *("status", "result", "content_type", "error", "error_category"),
    )
    outcomes = (
        Outcome(
            request_id=f"call-{pk}",
            project_id=project_id,
            base_model_id=base_model_id,
            is_over=status in ENDED,
            is_forgotten=status == Status.LOST,
            result=bytes(result or b""),
            content_type=content_type,
            error=error or ("" if status == Status.DONE else "It did not succeed."),
            category=category or "unknown",
        )
        for pk, project_id, base_model_id, status, result, content_type, error, category in rows
    )
    return {f"call-{pk}": _make_forgotten(pk) for pk in pks} | {
        outcome.request_id: outcome for outcome in outcomes
    }


def _make_forgotten(pk: int) -> Outcome:
    return Outcome(
        request_id=f"call-{pk}", project_id="", base_model_id="", is_over=True, is_forgotten=True
    )


def find_ended(request_ids: Iterable[str]) -> set[str]:
    """Which of these have ended, without their results: what the sweep asks every few seconds."""
    wanted = list(request_ids)
    operations, calls = read_numbers(wanted, "op-"), read_numbers(wanted, "call-")
    ended: set[str] = set()
    if operations:
        rows = Operation.objects.filter(pk__in=operations, status__in=queue.ENDED)
        ended |= {f"op-{pk}" for pk in rows.values_list("pk", flat=True)}
    if calls:
        done = SamplingCall.objects.filter(pk__in=calls, status__in=ENDED)
        ended |= {f"call-{pk}" for pk in done.values_list("pk", flat=True)}
    return ended


def read_numbers(request_ids: Iterable[str], prefix: str) -> list[int]:
    numbers = (
        request_id.removeprefix(prefix)
        for request_id in request_ids
        if request_id.startswith(prefix)
    )
    return [int(number) for number in numbers if number.isdecimal() and len(number) <= 18]
