"""One curve of a family of runs: it forks where a branch begins, and goes on at the global step."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

from django.db.models import Avg, F, Min
from django.http import HttpRequest

from webapp.core.numbers import LARGEST_DRAWN, is_drawn
from webapp.core.templatetags.hone import count, digits
from webapp.runs.branches import Branch, read_family
from webapp.runs.models import Metric, Run

CURVES = ("loss", "held_out_loss", "reward/mean", "dpo/loss", "dpo/accuracy", "kl/reference")
MOST_DRAWN = 24  # branches: more lines say nothing any more
MOST_POINTS = 400  # of one line
WIDTH, HEIGHT = 960, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 40, 12, 32  # margins of the plot
TICKS = 5
SMALLEST = 1e-300  # what is below is no room on an axis

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    branch: Branch
    points: str  # of a polyline
    end: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """Where a branch leaves its parent's line."""

    branch: Branch
    x: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    key: str
    lines: Sequence[Line]
    forks: Sequence[Fork]
    across: Sequence[Tick]
    upward: Sequence[Tick]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1)
        return round(self.start + share * (self.end - self.start), 1)


def read_branches(request: HttpRequest, run: Run) -> dict[str, Any]:
    """The Branches tab."""
    family = read_family(run)
    drawn = family[:MOST_DRAWN]
    keys = list_keys(drawn)
    asked = request.GET.get("curve", "")
    key = asked if asked in keys else next(iter(keys), "")
    chart = draw(drawn, read_points(drawn, key), key) if key else None
    return {"family": family, "chart": chart, "curves": keys, "num_drawn": len(drawn)}


def list_keys(family: Sequence[Branch]) -> list[str]:
    """Curves that any of the family has."""
    runs = [branch.run.pk for branch in family]
    rows = Metric.objects.filter(run__in=runs, key__in=CURVES).order_by()
    found = set(rows.values_list("key", flat=True).distinct())
    return [key for key in CURVES if key in found]


def read_points(family: Sequence[Branch], key: str) -> dict[str, list[tuple[int, float]]]:
    """By run, the mean of each stretch of steps: one query, however long the runs are."""
    longest = max((branch.run.step for branch in family), default=0)
    stride = max(1, ceil(longest / MOST_POINTS))
    rows = Metric.objects.filter(
        run__in=[branch.run.pk for branch in family],
        key=key,
        value__range=(-LARGEST_DRAWN, LARGEST_DRAWN),  # the mean of larger ones overflows
    )
    stretches = (
        rows.annotate(stretch=F("step") / stride)
        .values("run", "stretch")
        .annotate(first=Min("step"), mean=Avg("value"))
        .order_by("run", "stretch")
    )
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for each in stretches.values_list("run", "first", "mean"):
        run, step, value = each
        if is_drawn(value):
            points[run].append((step, value))
    return points


def draw(family: Sequence[Branch], own: Mapping[str, Points], key: str) -> Chart | None:
    """None: nothing of it was measured yet."""
    lines = connect(family, own)
    everything = [point for points in lines.values() for point in points]
    if not everything:
        return None
    steps, values = [step for step, _ in everything], [value for _, value in everything]
    low, high = spread(min(values), max(values))
    across = Scale(low=0, high=max(*steps, 1), start=LEFT, end=WIDTH - RIGHT)
    upward = Scale(low=low, high=high, start=HEIGHT - BOTTOM, end=TOP)
    drawn = [branch for branch in family if lines[branch.number]]
    forks = [branch for branch in drawn if branch.start]
    return Chart(
        key=key,
        lines=[_draw_line(each, lines[each.number], across, upward) for each in drawn],
        forks=[_draw_fork(each, lines[each.number], across, upward) for each in forks],
        across=[
            Tick(at=across.place(value), text=count(value))
            for value in list_ticks(0, across.high, whole=True)
        ],
        upward=[
            Tick(at=upward.place(value), text=digits(value)) for value in list_ticks(low, high)
        ],
    )


def spread(low: float, high: float) -> tuple[float, float]:
    """A level line stands in the middle, and not at an edge."""
    if high - low <= max(abs(high) * 1e-9, SMALLEST):
        room = abs(low) / 2 or 0.5
        return low - room, high + room
    return low, high


def connect(
    family: Sequence[Branch], own: Mapping[str, Points]
) -> dict[int, list[tuple[int, float]]]:
    """By branch, its points at global steps; it leaves from where its parent's line was then."""
    lines: dict[int, list[tuple[int, float]]] = {}
    for branch in family:
        points = [(branch.start + step, value) for step, value in own.get(branch.run.pk, ())]
        before = lines.get(branch.parent_number, [])
        at_fork = [value for step, value in before if step <= branch.start]
        if points and at_fork and branch.start:
            points = [(branch.start, at_fork[-1]), *points]
        lines[branch.number] = points
    return lines


def _draw_line(branch: Branch, points: Points, across: Scale, upward: Scale) -> Line:
    places = [(across.place(step), upward.place(value)) for step, value in points]
    written = " ".join(f"{x},{y}" for x, y in places)
    return Line(branch=branch, points=written, end=places[-1])


def _draw_fork(branch: Branch, points: Points, across: Scale, upward: Scale) -> Fork:
    step, value = points[0]
    return Fork(branch=branch, x=across.place(step), y=upward.place(value))


def list_ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round numbers between both ends: 1, 2 or 5 of a power of ten apart."""
    rough = (high - low) / TICKS
    power = 10.0 ** floor(log10(rough))
    gap = next(power * each for each in (1, 2, 5, 10) if power * each >= rough)
    gap = max(gap, 1) if whole else gap
    first = ceil(low / gap)
    return [each * gap for each in range(first, floor(high / gap) + 1)]
