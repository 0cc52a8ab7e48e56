"""How far a run is and how it does: the numbers at the head of its page and on its card."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from django.db.models import F, Window
from django.db.models.functions import RowNumber
from django.utils.timezone import now

from webapp.runs.models import Metric, Run

TREND_POINTS = 40
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
        eta_seconds=estimate_rest(run),
        elapsed_seconds=read_elapsed(run),
        tokens_per_second=run.tokens_per_second,
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


def estimate_rest(run: Run) -> float | None:
    """None: nothing to go by yet, or nobody knows how many steps a client will take."""
    elapsed = read_elapsed(run)
    if run.status != Run.Status.RUNNING or not run.total_steps or not run.step or elapsed is None:
        return None
    return elapsed / run.step * max(run.total_steps - run.step, 0)


def read_loss_trends(runs: Iterable[Run]) -> dict[str, list[float]]:
    """The newest losses of several runs, in one query."""
    newest_first = Window(RowNumber(), partition_by=[F("run_id")], order_by=F("step").desc())
    numbered = (
        Metric.objects.filter(run__in=[run.pk for run in runs], key="loss")
        .annotate(place=newest_first)
        .filter(place__lte=TREND_POINTS)
        .order_by("run_id", "step")
    )
    trends: dict[str, list[float]] = {}
    for run_id, value in numbered.values_list("run_id", "value"):
        trends.setdefault(run_id, []).append(value)
    return trends
