"""A client that waits for each forward_backward before it submits the optim_step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from webapp.runs.models import Operation, Run
from webapp.runs.thresholds import DEFAULTS, Limits
from workers.diagnosing.thresholds import (
    PAIRS,
    PAIRS_KEPT,
    SHORTEST_PASS,
)
from workers.diagnosing.verdict import NOTHING, Verdict, clear, found, not_applicable, waiting

Kind = Operation.Kind

READ = 4 * PAIRS_KEPT  # newest operations of the log

FEW = (
    f"It takes {PAIRS} steps whose passes are long enough to tell: at least"
    f" {1000 * SHORTEST_PASS:.0f} ms each."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The last forward_backward of a batch, and the optim_step that follows it."""

    passed_from: datetime  # when the forward_backward was submitted
    passed_at: datetime  # when its result was there
    asked_at: datetime  # when the optim_step was submitted

    @property
    def is_long(self) -> bool:
        return (self.passed_at - self.passed_from).total_seconds() >= SHORTEST_PASS

    @property
    def lost_seconds(self) -> float:
        """Between the two, in which the device had nothing of this run to do."""
        return max((self.asked_at - self.passed_at).total_seconds(), 0.0)

    @property
    def is_sequential(self) -> bool:
        return self.asked_at >= self.passed_at


def look(run: Run, _memory: Mapping[str, Any] = NOTHING, limits: Limits = DEFAULTS) -> Verdict:
    if run.recipe:
        return not_applicable("A recipe of this server drives the run: it submits ahead.")
    return judge(read_steps(run), step=run.step, limits=limits)


def read_steps(run: Run) -> list[Step]:
    """The newest, in order."""
    rows = Operation.objects.filter(
        run=run,
        kind__in=(Kind.FORWARD_BACKWARD, Kind.OPTIM_STEP),
        forward_only=False,
        status=Operation.Status.DONE,
    )
    columns = rows.order_by("-seq").values_list("kind", "created_at", "finished_at")
    return pair(list(columns[:READ])[::-1])


def pair(rows: Sequence[tuple[str, datetime, datetime | None]]) -> list[Step]:
    steps: list[Step] = []
    last: tuple[datetime, datetime | None] | None = None
    for kind, created_at, finished_at in rows:
        if kind == Kind.OPTIM_STEP and last is not None:
            before_at, passed_at = last
            passed_at = passed_at or created_at
            steps.append(Step(passed_from=before_at, passed_at=passed_at, asked_at=created_at))
        last = (created_at, finished_at) if kind == Kind.FORWARD_BACKWARD else None
    return steps


def judge(steps: Sequence[Step], *, step: int, limits: Limits = DEFAULTS) -> Verdict:
    kept = [each for each in steps if each.is_long][-PAIRS_KEPT:]
    if len(kept) < PAIRS:
        return waiting(FEW)
    share = sum(each.is_sequential for each in kept) / len(kept)
    lost = measure_lost(kept)
    if share < limits.sequential_share or lost < limits.lost_share:
        return clear(f"Of the last {len(kept)} steps, {share:.0%} waited; {lost:.1%} was lost.")
    text = (
        f"The optim_step arrives only after its forward_backward is done: of the last {len(kept)}"
        f" steps {share:.0%} waited so, and {lost:.0%} of the time the device had nothing of this"
        f" run to do. It is said from {limits.sequential_share:.0%} of the steps and"
        f" {limits.lost_share:.1%} of the time on. Submit both before waiting for either."
    )
    numbers = {"steps looked at": len(kept), "waited": f"{share:.0%}", "time lost": f"{lost:.1%}"}
    return found(text, step=step, facts={"numbers": numbers, "lost_share": round(lost, 4)})


def measure_lost(steps: Sequence[Step]) -> float:
    """Of the time from the first pass to the last step."""
    whole = (steps[-1].asked_at - steps[0].passed_from).total_seconds()
    return sum(step.lost_seconds for step in steps) / whole if whole > 0 else 0.0
