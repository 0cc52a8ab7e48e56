"""What each row of the dataset cost at every visit: rows never learned, rows whose loss rose."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from operator import itemgetter
from statistics import median

from webapp.runs.models import Run
from webapp.runs.records import RowLoss

MAX_ROW_LOSSES = 1_000_000  # of a run; later visits are not kept, and the page says so
UNLEARNED = 0.9  # of its first loss: a row that never came below it was not learned
RISEN = 1.1  # times its first loss
LEAST_RISE = 0.01  # nats: under it a row is as well known as before


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One row's losses, at the steps that learned from it."""

    row: int
    steps: Sequence[int]
    losses: Sequence[float]

    @property
    def first(self) -> float:
        return self.losses[0]

    @property
    def last(self) -> float:
        return self.losses[-1]

    @property
    def lowest(self) -> float:
        return min(self.losses)

    @property
    def change(self) -> float:
        return self.last - self.first

    @property
    def visits(self) -> int:
        return len(self.losses)

    @property
    def has_risen(self) -> bool:
        return self.visits > 1 and self.last > max(self.first * RISEN, self.first + LEAST_RISE)

    def is_unlearned(self, usual: float) -> bool:
        """`usual`: the middle of all rows' last losses; what is below it is known anyway."""
        return self.visits > 1 and self.last > usual and self.lowest > self.first * UNLEARNED


def record_row_losses(run: Run, step: int, losses: Mapping[int, float]) -> None:
    """A replay that comes by again changes nothing."""
    if step * len(losses) > MAX_ROW_LOSSES:
        return
    RowLoss.objects.bulk_create(
        [
            RowLoss(run=run, step=step, row=row, loss=loss)
            for row, loss in losses.items()
            if isfinite(loss)
        ],
        ignore_conflicts=True,
    )


def read_trajectories(run: Run) -> list[Trajectory]:
    rows = run.row_losses.order_by("row", "step").values_list("row", "step", "loss")
    return list(_group(rows.iterator()))


def _group(visits: Iterable[tuple[int, int, float]]) -> Iterator[Trajectory]:
    for row, group in groupby(visits, key=itemgetter(0)):
        kept = list(group)
        yield Trajectory(
            row=row, steps=[visit[1] for visit in kept], losses=[visit[2] for visit in kept]
        )


def find_usual(trajectories: Sequence[Trajectory]) -> float:
    return median(each.last for each in trajectories) if trajectories else 0.0


def find_unlearned(run: Run) -> list[int]:
    """Numbers of the rows that the run never learned."""
    trajectories = read_trajectories(run)
    usual = find_usual(trajectories)
    return [each.row for each in trajectories if each.is_unlearned(usual)]


def find_risen(run: Run) -> list[int]:
    return [each.row for each in read_trajectories(run) if each.has_risen]
