"""How far a run is and how it does: the numbers at the head of its page and on its card."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from statistics import median

from django.db.models import Avg, F, QuerySet, Window
from django.db.models.functions import RowNumber
from django.utils.timezone import now

from webapp.runs.models import Metric, Run

TREND_POINTS = 40
PAUSE_FACTOR = 10  # of the usual gap between steps: longer ones are no work
TREND_KEYS = ("loss", "held_out_loss", "tokens_per_second")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    trends: Mapping[str, Sequence[float]] = field(default_factory=dict)
    held_out_loss: float | None = None
    held_out_step: int | None = None
    eta_seconds: float | None = None
    elapsed_seconds: float | None = None
    tokens_per_second: float | None = None


def read_stats(run: Run) -> Stats:
    rows = _read_newest(run)
    trends = {key: [value for _, value in points] for key, points in rows.items()}
    held_out = rows["held_out_loss"]
    return Stats(
        trends=trends,
        held_out_step=held_out[-1][0] if held_out else None,
        held_out_loss=held_out[-1][1] if held_out else None,
        eta_seconds=estimate_rests([run]).get(run.pk),
        elapsed_seconds=read_elapsed(run),
        tokens_per_second=read_speed(run),
    )


def _read_newest(run: Run) -> dict[str, list[tuple[int, float]]]:
    newest: dict[str, list[tuple[int, float]]] = {}
    for key in TREND_KEYS:
        points = run.metrics.filter(key=key).order_by("-step").values_list("step", "value")
        newest[key] = list(points[:TREND_POINTS])[::-1]
    return newest


def read_elapsed(run: Run) -> float | None:
    if run.started_at is None:
        return None
    end: datetime = run.ended_at or now()
    return (end - run.started_at).total_seconds()


def read_speed(run: Run) -> float | None:
    """While it runs the newest, smoothed; afterwards what the whole of it came to."""
    if not run.is_over:
        return run.tokens_per_second
    points = run.metrics.filter(key="tokens_per_second", value__gt=0)
    seconds_a_token: float | None = points.aggregate(mean=Avg(1.0 / F("value")))["mean"]
    return 1 / seconds_a_token if seconds_a_token else run.tokens_per_second


def estimate_rests(runs: Iterable[Run]) -> dict[str, float]:
    """Seconds to go by run, from how its newest steps followed each other. Absent: nobody knows."""
    running = [run for run in runs if run.status == Run.Status.RUNNING and run.total_steps]
    moments: dict[str, list[datetime]] = {}
    for run_id, at in _read_newest_losses(running).values_list("run_id", "at"):
        moments.setdefault(run_id, []).append(at)
    return {
        run.pk: pace * max((run.total_steps or 0) - run.step, 0)
        for run in running
        if (pace := measure_pace(moments.get(run.pk, []))) is not None
    }


def measure_pace(moments: Sequence[datetime]) -> float | None:
    """Mean seconds between steps, without the gaps in which the run stood still."""
    gaps = [(after - before).total_seconds() for before, after in pairwise(moments)]
    if not gaps:
        return None
    kept = [gap for gap in gaps if gap <= PAUSE_FACTOR * median(gaps)]
    return sum(kept) / len(kept)


def read_loss_trends(runs: Iterable[Run]) -> dict[str, list[float]]:
    """The newest losses of several runs, in one query."""
    trends: dict[str, list[float]] = {}
    for run_id, value in _read_newest_losses(runs).values_list("run_id", "value"):
        trends.setdefault(run_id, []).append(value)
    return trends


def _read_newest_losses(runs: Iterable[Run]) -> QuerySet[Metric]:
    newest_first = Window(RowNumber(), partition_by=[F("run_id")], order_by=F("step").desc())
    return (
        Metric.objects.filter(run__in=[run.pk for run in runs], key="loss")
        .annotate(place=newest_first)
        .filter(place__lte=TREND_POINTS)
        .order_by("run_id", "step")
    )
