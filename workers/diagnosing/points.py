"""The newest points of a run's curves, never more than were asked for."""

from dataclasses import dataclass
from datetime import datetime

from webapp.runs.models import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    step: int
    value: float
    at: datetime


def read_newest(run: Run, key: str, limit: int) -> list[Point]:
    """In the order of steps."""
    rows = run.metrics.filter(key=key).order_by("-step").values_list("step", "value", "at")
    return [Point(step=step, value=value, at=at) for step, value, at in rows[:limit]][::-1]


def read_first(run: Run, key: str, limit: int) -> list[float]:
    rows = run.metrics.filter(key=key).order_by("step").values_list("value", flat=True)
    return list(rows[:limit])


def mean(points: list[Point]) -> float:
    return sum(point.value for point in points) / len(points)
