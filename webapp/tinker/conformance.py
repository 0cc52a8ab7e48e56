"""Which calls of which SDK work here: reports that runs of the conformance suite have written."""

import json
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings

# Renewed by `make conformance`; a test compares them with what the suite finds.
COMMITTED = Path(__file__).parent / "conformance_reports"
REFUSED = "refused"
SUPPORTED = "supported"
UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    group: str
    call: str
    status: str
    sentence: str  # of the server, or of the SDK itself; empty for what works
    note: str  # what the call's user should know although it works


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    sdk_version: str
    python: str
    ran_at: datetime
    calls: list[Call]

    def count(self, status: str) -> int:
        return sum(call.status == status for call in self.calls)

    @property
    def supported(self) -> int:
        return self.count(SUPPORTED)

    @property
    def offered(self) -> int:
        """What this version of the SDK has."""
        return len(self.calls) - self.count(UNAVAILABLE)

    @property
    def refused(self) -> int:
        return self.count(REFUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    call: str
    note: str
    statuses: list[tuple[str, str]]  # version and status, one a report
    sentences: list[tuple[str, str]]  # the versions that say it, and what they say


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    version: str
    supported: int
    offered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    name: str
    rows: list[Row]
    counts: list[Count]  # of all its calls, whichever rows are kept


def find_reports() -> list[Report]:
    """The newest SDK first; of each version the latest run, here or where Hone was made."""
    latest: dict[str, Report] = {}
    for path in (*COMMITTED.glob("*.json"), *(settings.HONE_HOME / "conformance").glob("*.json")):
        report = read_report(path)
        known = latest.get(report.sdk_version)
        if known is None or known.ran_at < report.ran_at:
            latest[report.sdk_version] = report
    return sorted(latest.values(), key=order_of_version, reverse=True)


def read_report(path: Path) -> Report:
    told = json.loads(path.read_text())
    return Report(
        sdk_version=told["sdk_version"],
        python=told["python"],
        ran_at=datetime.fromisoformat(told["ran_at"]),
        calls=[read_call(each) for each in told["calls"]],
    )


def read_call(told: dict[str, Any]) -> Call:
    return Call(
        group=told["group"],
        call=told["call"],
        status=told["status"],
        sentence=told["sentence"],
        note=told["note"],
    )


def order_of_version(report: Report) -> list[int]:
    return [int(part) for part in report.sdk_version.split(".")]


def compare_reports(reports: list[Report], *, status: str = "") -> list[Group]:
    """Every call of any of them, the newest SDK's first; `status` keeps the rows that have it."""
    rows: dict[str, dict[str, dict[str, Call]]] = {}
    for report in reports:
        for call in report.calls:
            versions = rows.setdefault(call.group, {}).setdefault(call.call, {})
            versions[report.sdk_version] = call
    order = [report.sdk_version for report in reports]
    groups = [make_group(name, calls, order) for name, calls in rows.items()]
    return keep_status(groups, status) if status else groups


def make_group(name: str, calls: dict[str, dict[str, Call]], order: list[str]) -> Group:
    rows = [make_row(call, versions, order) for call, versions in calls.items()]
    return Group(name=name, rows=rows, counts=[count_calls(rows, version) for version in order])


def count_calls(rows: list[Row], version: str) -> Count:
    statuses = [status for row in rows for known, status in row.statuses if known == version]
    return Count(
        version=version,
        supported=statuses.count(SUPPORTED),
        offered=len(statuses) - statuses.count(UNAVAILABLE),
    )


def make_row(name: str, calls: dict[str, Call], order: list[str]) -> Row:
    """`calls` has one entry a version that knows the call at all."""
    sentences: dict[str, list[str]] = {}
    for version, call in calls.items():
        if call.sentence:
            sentences.setdefault(call.sentence, []).append(version)
    return Row(
        call=name,
        note=next((call.note for call in calls.values() if call.note), ""),
        statuses=[(version, find_status(calls, version)) for version in order],
        sentences=[(", ".join(versions), sentence) for sentence, versions in sentences.items()],
    )


def find_status(calls: dict[str, Call], version: str) -> str:
    return calls[version].status if version in calls else UNAVAILABLE


def keep_status(groups: list[Group], status: str) -> list[Group]:
    kept = [
        replace(group, rows=[row for row in group.rows if has_status(row, status)])
        for group in groups
    ]
    return [group for group in kept if group.rows]


def has_status(row: Row, status: str) -> bool:
    return any(each == status for _, each in row.statuses)
