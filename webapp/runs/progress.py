"""How far a run is and how it does: the numbers at the head of its page and on its card."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import median

from django.db.models import Avg, F, QuerySet, Window
from django.db.models.functions import RowNumber
from django.utils.timezone import now

from webapp.runs.models import Metric, Run

TREND_POINTS = 40
PAUSE_FACTOR = 10  # of the usual gap between steps: longer ones are no work
SPEED = "tokens_per_second"
HELD_OUT = (("loss", "Loss"), ("held_out_loss", "Held-out loss"))
PAIRS = (("loss", "Loss"), ("held_out/accuracy", "Held-out accuracy"))
# What says how a run of a method does: of a policy it is not the loss.
HEADLINES: Mapping[str, Sequence[tuple[str, str]]] = {
    "dpo": PAIRS,
    "reward_model": PAIRS,
    "rl": (("reward/mean", "Reward"), ("held_out/reward", "Held-out reward")),
    "self_play": (("reward/mean", "Reward"), ("win_rate/random", "Won against random play")),
    "on_policy_distillation": (
        ("teacher/kl", "Distance to the teacher, nats"),
        ("held_out/teacher_kl", "Held-out distance, nats"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """A number that says how a run does, and its way there."""

    label: str
    value: float | None
    step: int | None  # of a number that is not measured at each step
    trend: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    headlines: Sequence[Headline] = ()
    speeds: Sequence[float] = ()
    eta_seconds: float | None = None
    elapsed_seconds: float | None = None
    tokens_per_second: float | None = None


def read_stats(run: Run) -> Stats:
    return Stats(
        headlines=_read_headlines(run),
        speeds=[value for _, value in _read_newest(run, SPEED)],
        eta_seconds=estimate_rests([run]).get(run.pk),
        elapsed_seconds=read_elapsed(run),
        tokens_per_second=read_speed(run),
    )


def _read_headlines(run: Run) -> list[Headline]:
    """A client's own loop holds nothing out, as far as is known, until it says so."""
    (first, first_label), (second, second_label) = HEADLINES.get(run.recipe, HELD_OUT)
    often, seldom = _read_newest(run, first), _read_newest(run, second)
    newest = often[-1][1] if often else None
    headlines = [
        Headline(
            label=first_label,
            value=run.last_loss if first == "loss" else newest,
            step=None,
            trend=[value for _, value in often],
        )
    ]
    if run.recipe or seldom:
        step, value = seldom[-1] if seldom else (None, None)
        trend = [value for _, value in seldom]
        headlines.append(Headline(label=second_label, value=value, step=step, trend=trend))
    return headlines


def _read_newest(run: Run, key: str) -> list[tuple[int, float]]:
    points = run.metrics.filter(key=key).order_by("-step").values_list("step", "value")
    return list(points[:TREND_POINTS])[::-1]


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
