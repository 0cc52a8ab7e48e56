"""A group's runs side by side: what differs between them, how far they are, what they reached."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from webapp.runs.grids import NOT_SWEPT
from webapp.runs.history import History, Point, read_metrics, split_drawn
from webapp.runs.models import Metric, Run, RunGroup

MOST_POINTS = 400  # of one run's curve beside others
SEED = "seed"
FIRST = ("held_out_loss", "held_out/accuracy", "reward/mean", "loss")  # what a group is judged by
# Parts of keys where more is better, and those of keys that have one and where less is.
RISING = ("accuracy", "reward", "score", "eval/", "win", "pass", "margin", "preferred")
FALLING = ("zero_std", "rejected_reward")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run. `best` is its best value of the chosen metric, `last` the newest."""

    run: Run
    place: int  # of its colour
    settings: Sequence[Any]  # in the order of the table's `varied`
    best: Point | None
    last: Point | None
    is_first: bool = False

    @property
    def name(self) -> str:
        """Without the group's, which every run of it begins with."""
        group = self.run.group
        return self.run.name.removeprefix(f"{group}: ") if group else self.run.name

    @property
    def colour(self) -> int:
        """Of the six that curves have."""
        return self.place % 6 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """`rows` best first; runs without a value of the metric at the end."""

    group: RunGroup
    metric: str
    metrics: Sequence[str]
    varied: Sequence[str]
    rows: Sequence[Row]
    is_rising: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Runs that differ by their seed alone: mean and spread at each step that all of them have."""

    name: str
    steps: Sequence[int]
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


def read_table(group: RunGroup, metric: str = "") -> Table:
    runs = list(
        group.runs.select_related("base_model", "after", "group").order_by("created_at", "pk")
    )
    metrics = list_metrics(runs)
    chosen = metric if metric in metrics else choose_metric(metrics)
    varied = find_varied(runs)
    is_rising = rises(chosen)
    curves = {run.pk: read_curve(run, chosen) for run in runs} if chosen else {}
    rows = [
        make_row(run, place, varied, curves.get(run.pk, ()), is_rising)
        for place, run in enumerate(runs)
    ]
    return Table(
        group=group,
        metric=chosen,
        metrics=metrics,
        varied=varied,
        rows=sort_rows(rows, is_rising),
        is_rising=is_rising,
    )


def list_metrics(runs: Sequence[Run]) -> list[str]:
    keys = Metric.objects.filter(run__in=runs).order_by("key").values_list("key", flat=True)
    return list(keys.distinct())


def rises(metric: str) -> bool:
    """Whether more of it is better."""
    if any(part in metric for part in FALLING):
        return False
    return any(part in metric for part in RISING)


def choose_metric(metrics: Sequence[str]) -> str:
    return next((key for key in FIRST if key in metrics), metrics[0] if metrics else "")


def find_varied(runs: Sequence[Run]) -> list[str]:
    """Settings that differ between the runs. Of a pipeline's stages, which share none: nothing."""
    if len({run.recipe for run in runs}) > 1:
        return []
    keys = sorted({key for run in runs for key in run.config if key not in NOT_SWEPT})
    return [key for key in keys if not is_same([run.config.get(key) for run in runs])]


def is_same(values: Sequence[Any]) -> bool:
    return all(value == values[0] for value in values)


def read_curve(run: Run, key: str) -> Sequence[Point]:
    history: History = read_metrics(run, [key], max_points=MOST_POINTS)
    return history.series.get(key, ())


def make_row(
    run: Run, place: int, varied: Sequence[str], curve: Sequence[Point], is_rising: bool
) -> Row:
    choose = max if is_rising else min
    best = choose(curve, key=lambda point: point.value) if curve else None
    return Row(
        run=run,
        place=place,
        settings=[run.config.get(key) for key in varied],
        best=best,
        last=curve[-1] if curve else None,
    )


def sort_rows(rows: Sequence[Row], is_rising: bool) -> list[Row]:
    sign = -1 if is_rising else 1

    def order(row: Row) -> float:
        return math.inf if row.best is None else sign * row.best.value

    ordered = sorted(rows, key=order)
    if len(ordered) > 1 and ordered[0].best is not None:
        ordered[0] = replace(ordered[0], is_first=True)
    return ordered


def make_bands(runs: Sequence[Run], curves: Mapping[str, Sequence[Point]]) -> list[Band]:
    """One for each set of settings that several seeds share."""
    varied = [key for key in find_varied(runs) if key != SEED]
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(describe_settings(run, varied), []).append(run)
    return [
        make_band(name, [curves[run.pk] for run in same])
        for name, same in alike.items()
        if len(same) > 1
    ]


def describe_settings(run: Run, varied: Sequence[str]) -> str:
    return ", ".join(f"{key} {run.config.get(key)}" for key in varied) or "all seeds"


def make_band(name: str, curves: Sequence[Sequence[Point]]) -> Band:
    """Mean and standard deviation at the steps that all of the runs have a drawn point of."""
    values: dict[int, list[float]] = {}
    for curve in curves:
        for point in split_drawn(curve)[0]:
            values.setdefault(point.step, []).append(point.value)
    shared = {step: each for step, each in sorted(values.items()) if len(each) == len(curves)}
    means = [statistics.fmean(each) for each in shared.values()]
    spreads = [statistics.stdev(each) for each in shared.values()]
    return Band(
        name=name,
        steps=list(shared),
        means=means,
        lows=[mean - spread for mean, spread in zip(means, spreads, strict=True)],
        highs=[mean + spread for mean, spread in zip(means, spreads, strict=True)],
    )
