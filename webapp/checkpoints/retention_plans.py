"""What a rule would delete now: each checkpoint of a project, with the reasons why it stays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.db.models import Sum
from django.utils.timezone import now

from webapp.checkpoints.models import Checkpoint, Export
from webapp.checkpoints.retention_needs import OVER, list_needs
from webapp.checkpoints.retention_rules import Keep, Row, decide
from webapp.checkpoints.scores import find_score
from webapp.core.errors import UserError
from webapp.core.templatetags.hone import count, size
from webapp.runs.models import Run

ALWAYS = ("pinned", "every parent of a kept checkpoint", "everything served or named by an alias")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    checkpoint: Checkpoint
    reasons: Sequence[str]  # empty: it goes
    size_bytes: int  # with what was exported of it

    @property
    def goes(self) -> bool:
        return not self.reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    keep: Keep
    suite_name: str
    items: Sequence[Item]

    @property
    def doomed(self) -> list[Item]:
        return [item for item in self.items if item.goes]

    @property
    def freed_bytes(self) -> int:
        return sum(item.size_bytes for item in self.doomed)

    def describe(self) -> str:
        kept = [*self.keep.describe(self.suite_name), *ALWAYS]
        return (
            f"Would delete {count(len(self.doomed))} of {count(len(self.items))}, free"
            f" {size(self.freed_bytes)}; keeps {', '.join(kept)}."
        )


def find_suite_name(project_id: str, keep: Keep) -> str:
    """Refuses a suite that is not there: by none of its scores nothing would be the best."""
    if not keep.suite:
        return ""
    suites = apps.get_model("evals", "EvalSuite")._default_manager.filter(project=project_id)
    name: str | None = suites.filter(pk=keep.suite).values_list("name", flat=True).first()
    if name is None:
        raise UserError("There is no such suite in this project: choose another.", field="suite")
    return name


def make_plan(project_id: str, keep: Keep) -> Plan:
    """As things are at this moment. The same few queries, however many checkpoints there are."""
    keep.check()
    suite_name = find_suite_name(project_id, keep)
    checkpoints = _read_checkpoints(project_id)
    rows = _make_rows(project_id, checkpoints, keep)
    reasons = decide(rows, keep, at=now())
    exported = _read_exported(project_id)
    items = [
        Item(
            checkpoint=checkpoint,
            reasons=reasons[checkpoint.pk],
            size_bytes=checkpoint.size_bytes + exported.get(checkpoint.pk, 0),
        )
        for checkpoint in checkpoints
        if not checkpoint.is_ephemeral
    ]
    return Plan(keep=keep, suite_name=suite_name, items=items)


def _read_checkpoints(project_id: str) -> list[Checkpoint]:
    """Those made for samples alone too: they end by themselves, and may need others."""
    rows = Checkpoint.objects.alive().filter(project=project_id).select_related("run")
    rows = rows.defer("probe", "user_metadata", "run__config")
    return list(rows.order_by("-created_at", "pk"))


def _make_rows(project_id: str, checkpoints: Sequence[Checkpoint], keep: Keep) -> list[Row]:
    needs = list_needs(project_id)
    scores = _read_scores(project_id, keep)
    going = _list_going(project_id)
    return [
        Row(
            id=each.pk,
            name=each.name,
            run=each.run_id,
            kind=each.kind,
            step=each.step,
            created_at=each.created_at,
            score=scores.get(each.pk),
            previous=each.previous_id or "" if each.is_delta else "",
            parent=each.run.parent_id or "",
            needs=needs.get(each.pk, ()),
            is_passing=each.is_ephemeral,
            is_resume_point=each.run_id in going,
        )
        for each in checkpoints
    ]


def _list_going(project_id: str) -> set[str]:
    """Runs that are not over, and those that another one waits to begin after: behind a judge it
    goes on from what the judge came after.
    """
    runs = Run.objects.filter(project=project_id).exclude(status__in=OVER)
    chains = runs.values_list("pk", "after", "after__after")
    return {pk for chain in chains for pk in chain if pk}


def _read_scores(project_id: str, keep: Keep) -> dict[str, float]:
    """The newest that is done, by the suite's first grader."""
    if not keep.suite:
        return {}
    evaluations: Any = apps.get_model("evals", "Evaluation")._default_manager
    done = evaluations.filter(project=project_id, suite=keep.suite, status="done")
    done = done.exclude(checkpoint=None).select_related("suite").defer("suite__items")
    scores = {each.checkpoint_id: find_score(each) for each in done.order_by("created_at", "pk")}
    return {pk: score for pk, score in scores.items() if score is not None}


def _read_exported(project_id: str) -> dict[str, int]:
    ready = Export.objects.filter(project=project_id, status=Export.Status.READY)
    return dict(ready.values_list("checkpoint").annotate(total=Sum("size_bytes")).order_by())
