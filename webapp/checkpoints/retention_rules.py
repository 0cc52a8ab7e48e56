"""What a retention rule keeps of some checkpoints, and why: decided without a database."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any

from webapp.core.errors import UserError

MOST = 1_000_000
PARENT = "a parent of {}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """The parts of a rule; one that is 0 keeps nothing."""

    best: int = 0  # of the project, by the newest score on `suite`
    suite: str = ""
    last: int = 0  # of each run and kind
    every: int = 0  # steps that this divides
    days: int = 0  # younger than that

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "Keep":
        unknown = set(given) - {each.name for each in fields(cls)}
        if unknown:
            raise UserError(
                f"A rule has no part {sorted(unknown)[0]!r:.60}: it has"
                f" {', '.join(each.name for each in fields(cls))}.",
                field="keep",
            )
        suite = given.get("suite") or ""
        if not isinstance(suite, str):
            raise UserError("suite is the id of an evaluation suite.", field="suite")
        numbers = {name: _read_number(given, name) for name in ("best", "last", "every", "days")}
        return cls(suite=suite, **numbers)

    @property
    def is_empty(self) -> bool:
        return not (self.best or self.last or self.every or self.days)

    def check(self) -> None:
        """A rule that keeps nothing would delete everything that is not needed at the moment."""
        if self.is_empty:
            raise UserError(
                "This rule keeps nothing: say how many of the best or the last, which steps, or how"
                " many days."
            )
        if self.best and not self.suite:
            raise UserError("Choose the suite by which they are the best.", field="suite")
        if self.suite and not self.best:
            raise UserError("Say how many of the best by this suite stay.", field="best")

    def describe(self, suite_name: str) -> list[str]:
        return [
            text
            for number, text in (
                (self.best, f"best {self.best} by {suite_name}"),
                (
                    self.last,
                    "last of each run" if self.last == 1 else f"last {self.last} of each run",
                ),
                (self.every, f"every step that {self.every:,} divides"),
                (
                    self.days,
                    "what is younger than a day"
                    if self.days == 1
                    else f"what is younger than {self.days} days",
                ),
            )
            if number
        ]

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value}


def _read_number(given: Mapping[str, Any], name: str) -> int:
    value = given.get(name) or 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
        raise UserError(f"{name} is a whole number from 0 to {MOST:,}.", field=name)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a decision needs to know of one checkpoint. One that no rule touches, as it ends by
    itself, still needs its parents."""

    id: str
    name: str
    run: str
    kind: str
    step: int
    created_at: datetime
    score: float | None = None
    previous: str = ""  # what a delta is the difference to
    parent: str = ""  # what its run began with
    needs: Sequence[str] = field(default_factory=tuple)  # why it stays, whatever the rule says
    is_passing: bool = False
    is_resume_point: bool = False  # its run goes on, or another run waits for it


def decide(rows: Sequence[Row], keep: Keep, *, at: datetime) -> dict[str, list[str]]:
    """By checkpoint, why it stays; those without a reason go."""
    reasons: dict[str, list[str]] = {row.id: list(row.needs) for row in rows}
    for row in _find_resume_points(rows):
        reasons[row.id].append("its run goes on from here")
    for name, find in FINDERS.items():
        for row in find(rows, keep, at):
            reasons[row.id].append(name)
    _keep_parents(rows, reasons)
    return reasons


def _find_best(rows: Iterable[Row], keep: Keep, _at: datetime) -> list[Row]:
    scored = [row for row in rows if row.score is not None and not row.is_passing]
    scored.sort(key=lambda row: (row.score, row.created_at, row.id), reverse=True)
    return scored[: keep.best]


def _find_last(rows: Iterable[Row], keep: Keep, _at: datetime) -> list[Row]:
    return _take_newest(rows, keep.last) if keep.last else []


def _find_resume_points(rows: Iterable[Row]) -> list[Row]:
    return _take_newest([row for row in rows if row.is_resume_point], 1)


def _take_newest(rows: Iterable[Row], number: int) -> list[Row]:
    """Of each run and kind: training goes on from one, and another one is served."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if not row.is_passing:
            groups[row.run, row.kind].append(row)
    for group in groups.values():
        group.sort(key=lambda row: (row.step, row.created_at, row.id), reverse=True)
    return [row for group in groups.values() for row in group[:number]]


def _find_regular(rows: Iterable[Row], keep: Keep, _at: datetime) -> list[Row]:
    return [row for row in rows if keep.every and row.step > 0 and row.step % keep.every == 0]


def _find_young(rows: Iterable[Row], keep: Keep, at: datetime) -> list[Row]:
    limit = timedelta(days=keep.days)  # no date lies a million days back
    return [row for row in rows if keep.days and at - row.created_at < limit]


FINDERS: Mapping[str, Callable[[Sequence[Row], Keep, datetime], list[Row]]] = {
    "best": _find_best,
    "last": _find_last,
    "regular step": _find_regular,
    "young": _find_young,
}


def _keep_parents(rows: Sequence[Row], reasons: dict[str, list[str]]) -> None:
    """Every parent of what stays, and their parents, and so on."""
    by_id = {row.id: row for row in rows}
    waiting = [row for row in rows if reasons[row.id] or row.is_passing]
    while waiting:
        child = waiting.pop()
        for parent_id in dict.fromkeys((child.previous, child.parent)):
            parent = by_id.get(parent_id)
            if parent is None:
                continue
            if not reasons[parent_id] and not parent.is_passing:
                waiting.append(parent)
            reason = PARENT.format(child.name)
            if not any(each.startswith("a parent of") for each in reasons[parent_id]):
                reasons[parent_id].append(reason)
