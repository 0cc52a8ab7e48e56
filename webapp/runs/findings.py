"""What the diagnostics found in a run: written once, ended when it is over, dismissed by people."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import F, QuerySet
from django.utils.timezone import now

from webapp.accounts.models import Actor, Project
from webapp.accounts.permissions import check_can_write
from webapp.accounts.webhooks import tell
from webapp.core.errors import NotFound
from webapp.core.events import project_group, publish, run_group
from webapp.runs.annotations import annotate
from webapp.runs.diagnostics import BY_KEY, DIAGNOSTICS, Diagnostic, State
from webapp.runs.models import Run
from webapp.runs.records import Annotation, Finding, Look

Level = Finding.Level

WAITS = "Nothing was looked at yet: the first look follows within seconds of the first operation."


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One diagnostic of one run, as its page shows it."""

    diagnostic: Diagnostic
    state: str
    text: str
    finding: Finding | None = None

    @property
    def is_open(self) -> bool:
        return self.finding is not None and self.finding.ended_at is None

    @property
    def is_dismissed(self) -> bool:
        return self.finding is not None and self.finding.dismissed_at is not None


def take_look(run: Run, *, seen: datetime | None, moment: datetime) -> Look | None:
    """Claim a look at this run. None: another process has looked since `seen` was read."""
    look, _ = Look.objects.get_or_create(run=run)
    same = Look.objects.filter(pk=look.pk, looked_at=seen)
    if seen != look.looked_at or same.update(looked_at=moment) != 1:
        return None
    return look


def keep_look(look: Look, *, states: Mapping[str, Any], memory: Mapping[str, Any]) -> None:
    Look.objects.filter(pk=look.pk).update(states=dict(states), memory=dict(memory))
    if states != look.states:
        publish(run_group(look.run_id), "findings")


@transaction.atomic
def note_finding(
    run: Run, key: str, *, step: int, text: str, facts: Mapping[str, Any], level: str
) -> Finding:
    """It is so now. What begins, or begins again after it had ended, is drawn and told once."""
    finding = Finding.objects.select_for_update().filter(run=run, diagnostic=key).first()
    if finding is not None and finding.ended_at is None:
        _go_on(finding, step=step, text=text, facts=facts, level=level)
        return finding
    columns = {
        "level": level,
        "step": step,
        "last_step": step,
        "text": text,
        "facts": dict(facts),
        "created_at": now(),
        "seen_at": now(),
        "ended_at": None,
        "dismissed_at": None,
        "dismissed_by": None,
    }
    finding, _ = Finding.objects.update_or_create(run=run, diagnostic=key, defaults=columns)
    annotate(run, step, Annotation.Kind.DIAGNOSTIC, f"{BY_KEY[key].title}: {text}")
    _tell(run, finding)
    announce(run)
    return finding


def _go_on(finding: Finding, *, step: int, **columns: Any) -> None:
    """The first step stays. Only what has changed is written."""
    fresh = {**columns, "facts": dict(columns["facts"]), "last_step": max(step, finding.last_step)}
    changed = any(getattr(finding, name) != value for name, value in fresh.items())
    Finding.objects.filter(pk=finding.pk).update(seen_at=now(), **fresh)
    if changed:
        publish(run_group(finding.run_id), "findings")


def _tell(run: Run, finding: Finding) -> None:
    title = BY_KEY[finding.diagnostic].title
    body = {
        "text": f"{run.name}: {title} at step {finding.step}. {finding.text}",
        "run": run.pk,
        "run_name": run.name,
        "diagnostic": finding.diagnostic,
        "level": finding.level,
        "step": finding.step,
        "path": f"/runs/{run.pk}/?tab=integrity",
    }
    # One that ended and comes again at another step is another event.
    key = f"{run.pk}:{finding.step}"
    tell(run.project_id, f"diagnostic.{finding.diagnostic}", key, body)


def end_finding(run: Run, key: str) -> bool:
    """It is not so any more. False: it was not so before either."""
    live = Finding.objects.filter(run=run, diagnostic=key, ended_at=None)
    ended = live.update(ended_at=now()) == 1
    if ended:
        announce(run)
    return ended


def dismiss_finding(*, actor: Actor, run: Run, key: str) -> None:
    """Somebody knows of it: its badge goes, until it ends and begins again."""
    check_can_write(actor, project_id=run.project_id)
    live = Finding.objects.filter(run=run, diagnostic=key, ended_at=None)
    if live.update(dismissed_at=now(), dismissed_by=actor.user) != 1:
        raise NotFound("This run has no such finding now.")
    announce(run)


def restore_finding(*, actor: Actor, run: Run, key: str) -> None:
    """A dismissed one shows its badge again."""
    check_can_write(actor, project_id=run.project_id)
    gone = Finding.objects.filter(run=run, diagnostic=key).exclude(dismissed_at=None)
    if gone.update(dismissed_at=None, dismissed_by=None) != 1:
        raise NotFound("This run has no such dismissed finding.")
    announce(run)


def announce(run: Run) -> None:
    publish(run_group(run.pk), "findings")
    publish(project_group(run.project_id), "runs")


def list_entries(run: Run) -> list[Entry]:
    """All ten, what was found first. Two queries."""
    look = Look.objects.filter(run=run).values_list("states", flat=True).first() or {}
    rows = run.findings.select_related("dismissed_by")
    found = {each.diagnostic: each for each in rows}
    entries = [_describe(each, look.get(each.key), found.get(each.key)) for each in DIAGNOSTICS]
    return sorted(entries, key=lambda entry: (not entry.is_open, entry.is_dismissed))


def read_looked_at(run: Run) -> datetime | None:
    """None: not yet, or not since the thresholds changed."""
    return Look.objects.filter(run=run).values_list("looked_at", flat=True).first()


def _describe(
    diagnostic: Diagnostic, state: Mapping[str, str] | None, finding: Finding | None
) -> Entry:
    if finding is not None and finding.ended_at is None:
        told = {"state": State.FOUND.value, "text": finding.text}
    else:
        told = dict(state or {"state": State.WAITING.value, "text": WAITS})
    return Entry(diagnostic=diagnostic, finding=finding, **told)


def list_open(run: Run) -> list[Finding]:
    """What its page says at once."""
    return list(_open().filter(run=run))


def list_newest(project: Project, limit: int) -> list[Finding]:
    """Of all its runs."""
    return list(_open().filter(run__project=project).select_related("run")[:limit])


def read_badges(run_ids: Iterable[str]) -> dict[str, Sequence[Finding]]:
    """By run, in one query."""
    badges: dict[str, list[Finding]] = {}
    for finding in _open().filter(run__in=list(run_ids)):
        badges.setdefault(finding.run_id, []).append(finding)
    return {run_id: tuple(findings) for run_id, findings in badges.items()}


def _open() -> QuerySet[Finding]:
    live = Finding.objects.filter(ended_at=None, dismissed_at=None, diagnostic__in=BY_KEY)
    return live.order_by("level", F("created_at").desc())  # errors first
