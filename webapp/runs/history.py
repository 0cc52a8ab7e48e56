"""A run's numbers: written once a step, read by its charts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from django.db import transaction
from django.db.models import F, FloatField, Value
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce

from webapp.core.events import project_group, publish, run_group
from webapp.core.numbers import is_drawn, keep_finite
from webapp.runs.models import Metric, Run

SPEED_WEIGHT = 0.2  # of the newest step in a run's tokens a second
MAX_POINTS = 1000  # of one curve: about the pixels it is drawn on
TIMES_AT_ONCE = 10_000  # SQLite takes up to 32,766 values in one question


class Mark(NamedTuple):
    """A point as it is thinned, without its moment. A tuple: there may be hundreds of thousands."""

    pk: int
    step: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    step: int
    value: float
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Curves by key, in the order of steps, and where to go on reading."""

    series: Mapping[str, Sequence[Point]]
    last_id: int


def name_score(suite: str, figure: str) -> str:
    """The key of what the checkpoints of a run score on a suite: as long as a key may be."""
    return f"eval/{suite[:60]}/{figure}"[:100]


@transaction.atomic
def record_metrics(run: Run, step: int, metrics: Mapping[str, float]) -> None:
    """A replayed step writes nothing twice: the first value of a step and key stays.

    Pages ask for what follows a number: those of a run are seen in their order, as whoever writes
    them holds the run's row.
    """
    rows = Run.objects.select_for_update(no_key=True).filter(pk=run.pk)
    list(rows.values_list("pk", flat=True))
    _insert(run, step, metrics)


def _insert(run: Run, step: int, metrics: Mapping[str, float]) -> None:
    rows = [
        Metric(run=run, step=step, key=key, value=value)
        for key, value in metrics.items()
        if math.isfinite(value)
    ]
    Metric.objects.bulk_create(rows, ignore_conflicts=True)
    publish(run_group(run.pk), "metrics")


@transaction.atomic(savepoint=False)
def record_optimizer_step(run: Run, metrics: Mapping[str, float], *, num_tokens: int) -> int:
    """Count one optimizer step and write its numbers. Returns its number, from 1 on."""
    changes: dict[str, object] = {"step": F("step") + 1, "num_tokens": F("num_tokens") + num_tokens}
    if "loss" in metrics:
        changes["last_loss"] = keep_finite(metrics["loss"])
    if math.isfinite(metrics.get("tokens_per_second", math.nan)):
        changes["tokens_per_second"] = smooth_speed(metrics["tokens_per_second"])
    Run.objects.filter(pk=run.pk).update(**changes)
    step: int = Run.objects.values_list("step", flat=True).get(pk=run.pk)
    _insert(run, step, metrics)
    publish(project_group(run.project_id), "runs")
    return step


def smooth_speed(newest: float) -> Combinable:
    """An exponential mean: one slow step, such as the one beside a held-out pass, says little."""
    before = Coalesce(F("tokens_per_second"), Value(newest), output_field=FloatField())
    return before * (1 - SPEED_WEIGHT) + Value(newest * SPEED_WEIGHT)


def list_keys(run: Run) -> list[str]:
    return list(run.metrics.order_by("key").values_list("key", flat=True).distinct())


def read_metrics(
    run: Run,
    keys: Iterable[str] | None = None,
    *,
    after_id: int = 0,
    max_points: int = MAX_POINTS,
) -> History:
    """Everything after `after_id`, so that a page that was away fetches what it lacks.

    A curve of more than `max_points` is thinned, and its extremes stay.
    """
    rows = run.metrics.filter(pk__gt=after_id).order_by("step")
    if keys is not None:
        rows = rows.filter(key__in=list(keys))
    curves: dict[str, list[Mark]] = {}
    last_id = after_id
    for pk, key, step, value in rows.values_list("pk", "key", "step", "value").iterator():
        curves.setdefault(key, []).append(Mark(pk, step, value))
        last_id = max(last_id, pk)
    thinned = {key: thin(marks, max_points) for key, marks in curves.items()}
    return History(series=_read_times(thinned), last_id=last_id)


def _read_times(curves: Mapping[str, Sequence[Mark]]) -> dict[str, Sequence[Point]]:
    """Of the points that are kept alone: a moment costs more to read than all else of a row."""
    kept = [mark.pk for marks in curves.values() for mark in marks]
    times: dict[int, datetime] = {}
    for place in range(0, len(kept), TIMES_AT_ONCE):
        rows = Metric.objects.filter(pk__in=kept[place : place + TIMES_AT_ONCE])
        times.update(rows.values_list("pk", "at"))
    return {
        key: [
            Point(step=mark.step, value=mark.value, at=times[mark.pk])
            for mark in marks
            if mark.pk in times  # a run may be deleted meanwhile
        ]
        for key, marks in curves.items()
    }


def split_drawn(points: Sequence[Point]) -> tuple[Sequence[Point], int]:
    """Those that a chart draws, and how many others there are."""
    drawn = [point for point in points if is_drawn(point.value)]
    return drawn, len(points) - len(drawn)


def thin(points: Sequence[Mark], max_points: int) -> Sequence[Mark]:
    """The lowest and the highest of each stretch, and both ends."""
    if len(points) <= max_points:
        return points
    num_stretches = max(1, (max_points - 2) // 2)
    inner = points[1:-1]
    kept = [points[0]]
    for index in range(num_stretches):
        start, stop = (len(inner) * place // num_stretches for place in (index, index + 1))
        kept.extend(_find_extremes(inner[start:stop]))
    return [*kept, points[-1]]


def _find_extremes(stretch: Sequence[Mark]) -> list[Mark]:
    if not stretch:
        return []
    lowest = min(stretch, key=lambda point: point.value)
    highest = max(stretch, key=lambda point: point.value)
    if lowest is highest:
        return [lowest]
    return sorted((lowest, highest), key=lambda point: point.step)
