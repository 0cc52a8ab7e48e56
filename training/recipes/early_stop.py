"""Early stop: when a number that is measured now and then has not become better for a while."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.errors import InvalidInput
from training.recipes.fields import check_fields, real, whole, yes_or_no

LONGEST_METRIC = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStop:
    """Stop once `patience` measurements in a row were not better than the best by `min_delta`."""

    metric: str = "held_out_loss"
    patience: int = 3
    min_delta: float = 0.0
    higher_is_better: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best measurement, and how many have come since."""

    step: int
    value: float
    num_since: int


def find_best(points: Sequence[tuple[int, float]], rule: EarlyStop) -> Best | None:
    """`points` are (step, value) in the order of steps; what is not a number counts as worse."""
    sign = -1.0 if rule.higher_is_better else 1.0
    best: Best | None = None
    for step, value in points:
        improved = best is None or sign * value < sign * best.value - rule.min_delta
        if math.isfinite(value) and improved:
            best = Best(step=step, value=value, num_since=0)
        elif best is not None:
            best = Best(step=best.step, value=best.value, num_since=best.num_since + 1)
    return best


def find_end(points: Sequence[tuple[int, float]], rule: EarlyStop) -> Best | None:
    """The best measurement, where it is time to stop."""
    best = find_best(points, rule)
    return best if best is not None and best.num_since >= rule.patience else None


def check_early_stop(name: str, value: Any) -> EarlyStop | None:
    if value is None or isinstance(value, EarlyStop):
        return value
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{name} is not an object with named fields")
    return EarlyStop(**check_fields(value, CHECKS, name=name, within=f"{name}."))


def check_metric(name: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_METRIC:
        raise InvalidInput(f"{name} is {value!r:.60}: give a metric's key, such as held_out_loss")
    return value


CHECKS = {
    "metric": check_metric,
    "patience": whole(1, 10_000),
    "min_delta": real(0, 1e9),
    "higher_is_better": yes_or_no,
}
