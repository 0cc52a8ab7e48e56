"""The list of runs: filtered by text and status, sorted, page by page."""

from collections.abc import Callable
from dataclasses import dataclass

from django.db.models import F, FloatField, Q, Value
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce, Lower
from django.http import QueryDict

from webapp.accounts.models import Actor
from webapp.core.cursors import CursorPage, read_page
from webapp.runs.methods import METHODS
from webapp.runs.models import Run

LAST = 1e300  # where rows without a value are sorted: at the end, both ways

# What a list may be sorted by. Numbers and times fall first: the large and new are looked for.
SORTS = ("name", "status", "-step", "-loss", "-speed", "-created")
COLUMNS = tuple(sort.removeprefix("-") for sort in SORTS)

MOST_WORDS = 10  # of a search: each is a join more


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """What a list's URL asks for."""

    text: str
    status: str
    sort: str
    cursor: str

    @classmethod
    def read(cls, query: QueryDict) -> "RunQuery":
        status, sort = query.get("status", ""), query.get("sort", "-created")
        return cls(
            text=query.get("q", "").strip(),
            status=status if status in Run.Status.values else "",
            sort=sort if sort.removeprefix("-") in COLUMNS else "-created",
            cursor=query.get("cursor", ""),
        )

    @property
    def column(self) -> str:
        return self.sort.removeprefix("-")

    @property
    def is_falling(self) -> bool:
        return self.sort.startswith("-")


def list_runs(actor: Actor, query: RunQuery) -> CursorPage[Run]:
    rows = Run.objects.in_project(actor).select_related("base_model", "dataset_version__dataset")
    rows = rows.prefetch_related("base_model__names").defer("steering", "error")
    for word in query.text.split()[:MOST_WORDS]:
        rows = rows.filter(
            Q(name__icontains=word)
            | Q(pk__icontains=word)
            | Q(origin=word.lower())
            | Q(recipe__in=_find_recipes(word.lower()))
            | Q(base_model__names__name__icontains=word)
        )
    if query.text:
        rows = rows.distinct()
    if query.status:
        rows = rows.filter(status=query.status)
    column = SORT_COLUMNS[query.column]
    if query.column in COMPUTED:
        missing = -LAST if query.is_falling else LAST
        rows = rows.annotate(sort_key=COMPUTED[query.column](missing))
    return read_page(rows, order=f"-{column}" if query.is_falling else column, cursor=query.cursor)


def _find_recipes(word: str) -> list[str]:
    """By its own name, or by how a word of what pages call it begins."""
    return [
        recipe
        for recipe, method in METHODS.items()
        if word == recipe or any(part.startswith(word) for part in method.label.lower().split())
    ]


def or_last(column: str, missing: float) -> Coalesce:
    return Coalesce(F(column), Value(missing), output_field=FloatField())


COMPUTED: dict[str, Callable[[float], Combinable]] = {
    "name": lambda _: Lower("name"),
    "loss": lambda missing: or_last("last_loss", missing),
    "speed": lambda missing: or_last("tokens_per_second", missing),
}
SORT_COLUMNS = {
    "name": "sort_key",
    "loss": "sort_key",
    "speed": "sort_key",
    "status": "status",
    "step": "step",
    "created": "created_at",
}
