"""What a project takes of the disk, and whether there is room for more, before it is written."""

import shutil
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db.models import Count, Sum

from webapp.accounts.models import Project
from webapp.checkpoints.models import Checkpoint, Export
from webapp.core.errors import UserError
from webapp.core.templatetags.hone import size
from webapp.datasets.models import DatasetVersion

GONE = (DatasetVersion.Status.DISCARDED, DatasetVersion.Status.FAILED)
RUNS_LISTED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """In bytes. A copy counts like its original, though the two may share them on the disk."""

    checkpoints: int
    num_checkpoints: int
    exports: int
    datasets: int
    budget: int | None

    @property
    def total(self) -> int:
        return self.checkpoints + self.exports + self.datasets

    @property
    def share(self) -> float | None:
        return self.total / self.budget if self.budget else None

    @property
    def is_over(self) -> bool:
        return self.budget is not None and self.total > self.budget

    def describe(self) -> str:
        if self.budget is None:
            return f"{size(self.total)} used, without a budget"
        return f"{size(self.total)} used of a budget of {size(self.budget)}"


def read_use(project: Project) -> Use:
    """Three queries; the budget is read anew, as the row that is at hand may be old."""
    kept = Checkpoint.objects.alive().filter(project=project)
    saved = kept.aggregate(total=Sum("size_bytes"), number=Count("pk"))
    exported = Export.objects.filter(project=project).aggregate(total=Sum("size_bytes"))
    uploaded = DatasetVersion.objects.filter(project=project).exclude(status__in=GONE)
    return Use(
        checkpoints=saved["total"] or 0,
        num_checkpoints=saved["number"],
        exports=exported["total"] or 0,
        datasets=uploaded.aggregate(total=Sum("size_bytes"))["total"] or 0,
        budget=Project.objects.values_list("disk_budget_bytes", flat=True).get(pk=project.pk),
    )


def list_largest_runs(project: Project) -> list[Any]:
    kept = Checkpoint.objects.alive().filter(project=project)
    by_run = kept.order_by().values("run", "run__name")
    sums = by_run.annotate(total=Sum("size_bytes"), number=Count("pk"))
    return list(sums.order_by("-total", "run")[:RUNS_LISTED])


def count_free_bytes() -> int:
    """Above what is kept in reserve, for the database and autosaves; may be negative."""
    return shutil.disk_usage(settings.HONE_HOME).free - settings.DISK_RESERVE_BYTES


def check_room(project: Project, num_bytes: int, *, what: str, freed_bytes: int = 0) -> None:
    """UserError where `what` would exceed the project's budget or the disk's reserve.

    `freed_bytes`: of what it replaces, which goes once it is there.
    """
    use = read_use(project)
    if use.budget is not None and use.total + num_bytes - freed_bytes > use.budget:
        raise UserError(
            f"There is no room for {what}, which takes about {size(num_bytes)}: the project has"
            f" {use.describe()}. Delete checkpoints, or ask an owner for a larger budget."
        )
    if num_bytes > count_free_bytes():
        free = size(max(count_free_bytes() + settings.DISK_RESERVE_BYTES, 0))
        raise UserError(
            f"There is no room for {what}, which takes about {size(num_bytes)}: the server's disk"
            f" has {free} free, and keeps {size(settings.DISK_RESERVE_BYTES)} in reserve. Delete"
            " checkpoints, or ask the operator for space."
        )
