"""Why a run does not go on at this moment, in a sentence for its page."""

from collections.abc import Iterable
from dataclasses import dataclass

from webapp.fleet.capacity import Capacity, read_capacity
from webapp.runs.chains import OVER
from webapp.runs.lineup import Ahead, Lineup, Wait, read_lineup
from webapp.runs.models import Run

Status = Run.Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A run and what it waits for. `wait` is empty where it is worked on, or asked for nothing."""

    run: Run
    wait: str
    ahead: Ahead
    is_stopped: bool  # its turn alone does not change that it waits


def explain_wait(run: Run) -> str:
    (standing,) = explain_waits([run], read_capacity())
    return standing.wait


def explain_waits(runs: Iterable[Run], capacity: Capacity) -> list[Standing]:
    """Three queries at most, however many runs there are."""
    shown = list(runs)
    lineup, begun, before = _read_lineup(shown, capacity), _list_before(shown), _read_before(shown)
    return [_describe(run, lineup, begun, before.get(run.pk, "")) for run in shown]


def _read_before(runs: Iterable[Run]) -> dict[str, str]:
    """Of queued runs that follow another one which is not over: its name."""
    followers = [run.pk for run in runs if run.after_id and run.status == Status.QUEUED]
    if not followers:
        return {}
    rows = Run.objects.filter(pk__in=followers).exclude(after__status__in=OVER)
    return dict(rows.values_list("pk", "after__name"))


def _describe(run: Run, lineup: Lineup, begun: list[str], before: str) -> Standing:
    """A run that is served is not said to wait for those that it shares its worker with."""
    wait, line = _find_wait(run, lineup, begun), lineup.lines.get(run.pk)
    if before:
        wait = Wait(reason=f"it follows {before}, which is not done yet", is_stopped=True)
    is_served = line is not None and line.is_served and not wait.is_stopped
    return Standing(
        run=run,
        wait="" if is_served else wait.reason,
        ahead=wait.ahead,
        is_stopped=wait.is_stopped,
    )


def _read_lineup(runs: Iterable[Run], capacity: Capacity) -> Lineup:
    if any(run.status == Status.RUNNING for run in runs):
        return read_lineup(capacity)
    return Lineup(capacity=capacity, lines={})


def _list_before(runs: Iterable[Run]) -> list[str]:
    """Recipes of all projects that run or wait, in the order in which they get their turn."""
    if not any(run.status == Status.QUEUED for run in runs):
        return []
    live = Run.objects.filter(status__in=(Status.RUNNING, Status.QUEUED)).exclude(recipe="")
    rows = live.order_by("created_at").values_list("pk", "status")
    return [pk for pk, _ in sorted(rows, key=lambda row: row[1] == Status.QUEUED)]


def _find_wait(run: Run, lineup: Lineup, begun: list[str]) -> Wait:
    if run.status == Status.QUEUED:
        trainer = lineup.capacity.training
        return Wait(reason=trainer or _count_before(run, begun), is_stopped=bool(trainer))
    return lineup.explain(run.pk) if run.status == Status.RUNNING else Wait()


def _count_before(run: Run, begun: list[str]) -> str:
    num_before = begun.index(run.pk) if run.pk in begun else 0
    if not num_before:
        return "it begins in a moment"
    return f"waiting behind {num_before} other run{'s' if num_before > 1 else ''}"
