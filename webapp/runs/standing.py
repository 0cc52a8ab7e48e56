"""Why a run does not go on at this moment, in a sentence for its page."""

from collections.abc import Iterable
from dataclasses import dataclass

from webapp.fleet.capacity import Capacity, read_capacity
from webapp.runs.models import Operation, Run

Status = Run.Status

PENDING = (Operation.Status.QUEUED, Operation.Status.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A run and what it waits for; empty where it is worked on, or nobody asked for anything."""

    run: Run
    wait: str


def explain_wait(run: Run) -> str:
    (standing,) = explain_waits([run], read_capacity())
    return standing.wait


def explain_waits(runs: Iterable[Run], capacity: Capacity) -> list[Standing]:
    """Two queries, however many runs there are."""
    shown = list(runs)
    busy, begun = _find_pending(shown), _list_before(shown)
    return [Standing(run=run, wait=_explain(run, capacity, busy, begun)) for run in shown]


def _find_pending(runs: Iterable[Run]) -> set[str]:
    """Those whose log holds work that has not ended: others wait for their programs."""
    running = [run.pk for run in runs if run.status == Status.RUNNING]
    if not running:
        return set()
    pending = Operation.objects.filter(run__in=running, status__in=PENDING)
    return set(pending.values_list("run_id", flat=True))


def _list_before(runs: Iterable[Run]) -> list[str]:
    """Recipes of all projects that run or wait, in the order in which they get their turn."""
    if not any(run.status == Status.QUEUED for run in runs):
        return []
    live = Run.objects.filter(status__in=(Status.RUNNING, Status.QUEUED)).exclude(recipe="")
    rows = live.order_by("created_at").values_list("pk", "status")
    return [pk for pk, _ in sorted(rows, key=lambda row: row[1] == Status.QUEUED)]


def _explain(run: Run, capacity: Capacity, busy: set[str], begun: list[str]) -> str:
    if run.status == Status.QUEUED:
        return capacity.training or _count_before(run, begun)
    if run.pk in busy:
        reason = capacity.explain_training(run.base_model_id)
        return reason.replace("loading", "loading the model", 1)
    return ""


def _count_before(run: Run, begun: list[str]) -> str:
    num_before = begun.index(run.pk) if run.pk in begun else 0
    if not num_before:
        return "it begins in a moment"
    return f"waiting behind {num_before} other run{'s' if num_before > 1 else ''}"
