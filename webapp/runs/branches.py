"""A run's family: the tree of runs that branch from each other's checkpoints."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Exists, OuterRef, Q

from webapp.runs.models import Operation, Run

MOST_BRANCHES = 5000  # of a project: the newest
MOST_SHOWN = 200  # of one family


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A run of the family. Its steps count on from the step of what it began with: `start`."""

    number: int
    run: Run
    depth: int
    start: int
    parent_number: int  # 0: the root

    @property
    def end(self) -> int:
        return self.start + own_steps(self.run)

    @property
    def colour(self) -> int:
        return (self.number - 1) % 6 + 1

    @property
    def indent(self) -> int:
        """Deeper ones stand no further to the right: the page is only so wide."""
        return min(self.depth, 5)

    @property
    def dash(self) -> int:
        """Colours come round again with another pattern."""
        return (self.number - 1) // 6 % 4


def has_family(run: Run) -> bool:
    return run.parent_id is not None or Run.objects.filter(parent__run=run).exists()


def own_steps(run: Any) -> int:
    """A copy has made no step of its own: it stands where what was copied stood."""
    return 0 if run.is_copy else run.step


def read_family(run: Run) -> list[Branch]:
    """Depth first, older branches first. Two queries, whatever the family's size."""
    parents = _read_parents(run.project_id)
    root = _climb(run.pk, parents)
    children: dict[str, list[str]] = defaultdict(list)
    for child, parent in reversed(parents.items()):  # older first
        children[parent].append(child)
    order = _list_below(root, children)
    found = _read_runs([pk for pk, _ in order])
    return _number([(found[pk], depth) for pk, depth in order if pk in found])


def _read_parents(project_id: str) -> dict[str, str]:
    """By run, the run that it branches from, within the project; newest first."""
    branches = Run.objects.filter(Q(project=project_id), parent__run__project=project_id)
    pairs = branches.order_by("-created_at", "pk").values_list("pk", "parent__run")
    return {pk: parent for pk, parent in pairs[:MOST_BRANCHES] if parent is not None}


def _climb(run_id: str, parents: Mapping[str, str]) -> str:
    seen = {run_id}
    while (parent := parents.get(run_id)) is not None and parent not in seen:
        seen.add(parent)
        run_id = parent
    return run_id


def _list_below(root: str, children: Mapping[str, Sequence[str]]) -> list[tuple[str, int]]:
    order: list[tuple[str, int]] = []
    waiting = [(root, 0)]
    while waiting and len(order) < MOST_SHOWN:
        pk, depth = waiting.pop()
        order.append((pk, depth))
        waiting.extend((child, depth + 1) for child in reversed(children.get(pk, ())))
    return order


def _read_runs(run_ids: Sequence[str]) -> dict[str, Run]:
    done = Operation.objects.filter(run=OuterRef("pk"))
    rows = Run.objects.filter(pk__in=run_ids).select_related("parent", "dataset_version__dataset")
    return {run.pk: run for run in rows.annotate(is_copy=~Exists(done) & Q(step__gt=0))}


def _number(order: Sequence[tuple[Run, int]]) -> list[Branch]:
    family: list[Branch] = []
    by_run: dict[str, Branch] = {}
    for number, (run, depth) in enumerate(order, start=1):
        parent = by_run.get(run.parent.run_id) if run.parent is not None else None
        start = 0
        if parent is not None and run.parent is not None:
            # A copy's checkpoint keeps the step that its source had, and so does the copy.
            made = 0 if getattr(parent.run, "is_copy", False) else run.parent.step
            start = parent.start + made
        branch = Branch(
            number=number,
            run=run,
            depth=depth,
            start=start,
            parent_number=parent.number if parent else 0,
        )
        family.append(branch)
        by_run[run.pk] = branch
    return family
