"""The list of checkpoints: how it is sorted, and what all that match take of the disk."""

from dataclasses import dataclass

from django.db.models import Count, Sum
from django.http import QueryDict

from webapp.checkpoints.models import CheckpointQuerySet

SORTS = {"name": "name", "step": "step", "size": "size_bytes", "created": "created_at"}
HEADINGS = (
    ("name", "name", "Name", ""),
    ("", "", "Run", ""),
    ("", "", "Kind", ""),
    ("step", "-step", "Step", "number"),
    ("size", "-size", "Size", "number"),
    ("", "", "Digest", ""),
    ("", "", "From", ""),
    ("created", "-created", "Created", ""),
    ("", "", "Stays", ""),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sort:
    """What cannot be read is the usual order: newest first."""

    column: str
    is_falling: bool

    @classmethod
    def read(cls, query: QueryDict) -> "Sort":
        asked = query.get("sort", "")
        column = asked.removeprefix("-")
        if column not in SORTS:
            return cls(column="created", is_falling=True)
        return cls(column=column, is_falling=asked.startswith("-"))

    def apply(self, rows: CheckpointQuerySet) -> CheckpointQuerySet:
        sign = "-" if self.is_falling else ""
        return rows.order_by(f"{sign}{SORTS[self.column]}", "pk")

    def make_headings(self) -> list[dict[str, str]]:
        return [self._make_heading(*heading) for heading in HEADINGS]

    def _make_heading(self, column: str, sort: str, label: str, css: str) -> dict[str, str]:
        """Pressing the sorted column turns it round; any other begins with its own direction."""
        is_sorted = bool(column) and self.column == column
        turned = column if self.is_falling else f"-{column}"
        aria = ("descending" if self.is_falling else "ascending") if is_sorted else ""
        return {"label": label, "css": css, "sort": turned if is_sorted else sort, "aria": aria}


def sum_sizes(rows: CheckpointQuerySet) -> tuple[int, int]:
    """How many there are on all pages, and their bytes."""
    found = rows.order_by().aggregate(number=Count("pk"), total=Sum("size_bytes"))
    return found["number"], found["total"] or 0
