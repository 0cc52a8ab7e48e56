"""How many optimizer steps old the samples are that a step learns from."""

from collections.abc import Sequence
from datetime import datetime

from webapp.deployments.models import SamplingCall
from webapp.runs.models import Run
from workers.diagnosing.points import Point, read_newest
from workers.diagnosing.stale_sampler import OWN

STALENESS = "staleness"  # a curve of a recipe, which knows how old its samples are
BATCHES = 32  # newest, of one run
CALLS = 500  # newest, of one run


def read_ages(run: Run, firsts: Sequence[Point]) -> list[Point]:
    """Of the samples that these steps learned from for the first time, as far as it is known."""
    told = read_newest(run, STALENESS, BATCHES)
    if not told:
        return measure_ages(run, firsts)
    return spread(told, firsts, num_substeps=int(run.config.get("num_substeps") or 1))


def spread(told: Sequence[Point], firsts: Sequence[Point], *, num_substeps: int) -> list[Point]:
    """A recipe tells it once a batch, at its last step; each substep of it is one step older."""
    aged = []
    for point in firsts:
        batch = next((each for each in told if each.step >= point.step), None)
        if batch is not None:
            age = batch.value + (point.step - 1) % num_substeps
            aged.append(Point(step=point.step, value=age, at=point.at))
    return aged


def measure_ages(run: Run, firsts: Sequence[Point]) -> list[Point]:
    """Of a client's loop: how many steps lie between the weights that it last sampled from and each
    step that learned something for the first time."""
    if not firsts:
        return []
    rows = SamplingCall.objects.filter(checkpoint__run=run, purpose__in=OWN)
    ended = rows.filter(finished_at__isnull=False).order_by("-pk")
    calls = list(ended.values_list("finished_at", "checkpoint__step")[:CALLS])
    return [aged for point in firsts if (aged := measure_age(point, calls)) is not None]


def measure_age(point: Point, calls: Sequence[tuple[datetime | None, int]]) -> Point | None:
    """None: nothing was sampled before it, so its samples came from elsewhere."""
    before = [step for at, step in calls if at is not None and at < point.at]
    if not before:
        return None
    age = max(point.step - 1 - max(before), 0)
    return Point(step=point.step, value=float(age), at=point.at)
