"""Everything that waits for a device, read at once for all who ask: what is ahead, and why."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db.models import Count, F, Min, Q, Sum
from django.utils.timezone import now

from webapp.fleet.capacity import Capacity
from webapp.runs.models import Operation, Run
from webapp.runs.queue import START

PENDING = (Operation.Status.QUEUED, Operation.Status.RUNNING)
SERVED = timedelta(seconds=5)  # whose last operation ended so lately only shares its turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A run's operations that have not ended. `worker` leases it; empty: nobody does."""

    run_id: str
    project_id: str
    share: float
    base_model_id: str
    worker: str
    lost_worker: str  # whose lease has ended with work left
    done_seq: int
    first_seq: int
    num_operations: int
    num_tokens: int
    since: datetime  # nothing of it has ended since

    @property
    def is_served(self) -> bool:
        return now() - self.since < SERVED

    @property
    def missing_seq(self) -> int | None:
        """The number that its next operation waits for."""
        return self.done_seq + 1 if self.first_seq > self.done_seq + 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """About what is done before an operation: of its run, its project and others."""

    own: int = 0
    project: int = 0
    others: int = 0
    num_tokens: int = 0

    @property
    def num_operations(self) -> int:
        return self.own + self.project + self.others

    def describe(self) -> str:
        counts = [
            (self.own, "of this run"),
            (self.project, "of this project"),
            (self.others, "of other projects"),
        ]
        parts = [(count, whose) for count, whose in counts if count]
        if not parts:
            return ""
        noun, verb = ("operation", "is") if self.num_operations == 1 else ("operations", "are")
        told = [f"{count:,} {whose}" for count, whose in parts] if len(parts) > 1 else []
        whose = "" if told else f" {parts[0][1]}"
        tokens = [f"about {self.num_tokens:,} tokens"] if self.num_tokens else []
        details = ", ".join([*told, *tokens])
        sentence = f"{self.num_operations:,} {noun}{whose} {verb} ahead"
        return f"{sentence} ({details})" if details else sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """`is_stopped`: nothing of the run goes on, and its turn alone does not change that."""

    reason: str = ""
    is_stopped: bool = False
    ahead: Ahead = field(default_factory=Ahead)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineup:
    capacity: Capacity
    lines: Mapping[str, Line]  # by run

    def explain(self, run_id: str, seq: int | None = None) -> Wait:
        """Of one operation, or of the next one of a run. Nothing pending: no reason."""
        line = self.lines.get(run_id)
        if line is None:
            return Wait()
        ahead = self.count_ahead(line, line.first_seq if seq is None else seq)
        stop = self.find_stop(line)
        if stop:
            return Wait(reason=stop, is_stopped=True, ahead=ahead)
        return Wait(reason=ahead.describe(), ahead=ahead)

    def find_stop(self, line: Line) -> str:
        """Why nothing of the run goes on, in the order in which the reasons have to end."""
        if self.capacity.training:
            return self.capacity.training
        if line.missing_seq is not None:
            return f"waiting for seq_id {line.missing_seq}, which has not arrived"
        if line.lost_worker:
            return f"the worker {line.lost_worker} is lost: another one takes the run over"
        return self.capacity.explain_load(line.base_model_id, line.worker, line.run_id)

    def count_ahead(self, line: Line, seq: int) -> Ahead:
        """Turns are fair by tokens, so of others counts what their part is beside one's own."""
        own = max(0, seq - line.first_seq)
        tokens = line.num_tokens * min(1.0, (own + 1) / line.num_operations)
        mine = [
            (self._cut(other, tokens), other)
            for other in self._list_rivals(line)
            if other.project_id == line.project_id
        ]
        theirs = [
            (self._cut(other, tokens * other.share / line.share), other)
            for other in self._list_rivals(line)
            if other.project_id != line.project_id
        ]
        own_tokens = line.num_tokens * min(1.0, own / line.num_operations)
        return Ahead(
            own=own,
            project=sum(count for (count, _), _ in mine),
            others=sum(count for (count, _), _ in theirs),
            num_tokens=round(own_tokens + sum(part for (_, part), _ in mine + theirs)),
        )

    def _list_rivals(self, line: Line) -> list[Line]:
        """Those that the same worker serves now: who waits for a number is none."""
        return [
            other
            for other in self.lines.values()
            if other.worker == line.worker != ""
            and other.run_id != line.run_id
            and other.missing_seq is None
        ]

    @staticmethod
    def _cut(other: Line, tokens: float) -> tuple[int, float]:
        """How many of its operations, and of its tokens, go through meanwhile."""
        if not other.num_tokens or not tokens:
            return 0, 0.0
        part = min(1.0, tokens / other.num_tokens)
        return max(1, round(part * other.num_operations)), part * other.num_tokens


def read_lineup(capacity: Capacity) -> Lineup:
    """Of all projects, in one query."""
    return Lineup(capacity=capacity, lines={line.run_id: line for line in _read_lines()})


def _read_lines() -> Iterable[Line]:
    """What has not ended lies behind what has: the log before `done_seq` is not looked at."""
    pending = Operation.objects.filter(
        run__status=Run.Status.RUNNING, seq__gt=F("run__done_seq"), status__in=PENDING
    )
    columns = (
        *("run_id", "run__project_id", "run__project__share", "run__base_model_id"),
        *("run__worker", "run__lease_until", "run__done_seq", "run__last_request_at"),
    )
    rows = (
        pending.order_by()
        .values(*columns)
        .annotate(
            first_seq=Min("seq"),
            num_operations=Count("pk"),
            num_tokens=Sum("num_tokens"),
            created_at=Min("created_at"),
            num_begun=Count("pk", filter=Q(status=Operation.Status.RUNNING)),
        )
    )
    moment = now()
    for row in rows:
        name = row["run__worker"].partition(START)[0]
        is_held = bool(row["run__lease_until"] and row["run__lease_until"] > moment)
        yield Line(
            run_id=row["run_id"],
            project_id=row["run__project_id"],
            share=row["run__project__share"],
            base_model_id=row["run__base_model_id"],
            worker=name if is_held else "",
            lost_worker=name if row["num_begun"] and not is_held else "",
            done_seq=row["run__done_seq"],
            first_seq=row["first_seq"],
            num_operations=row["num_operations"],
            num_tokens=row["num_tokens"],
            since=max(row["created_at"], row["run__last_request_at"]),
        )
