"""Sweeps: one launch as a group of runs that differ in a few settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import transaction

from webapp.accounts.models import Actor
from webapp.runs.grids import Settings, describe_point, list_points, list_varied
from webapp.runs.models import Run, RunGroup
from webapp.runs.services import LONGEST_NAME, create_run
from webapp.runs.steering import request_stop


def create_sweep(
    *,
    actor: Actor,
    name: str,
    launch: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]] | None = None,
    settings: Sequence[Settings] | None = None,
) -> RunGroup:
    """All runs or none. `launch` is what `create_run` takes of each; `grid` is every combination
    of its values, `settings` a list of combinations: exactly one of the two is given.
    """
    points = list_points(grid, settings)
    title = name.strip() or "Sweep over " + ", ".join(list_varied(points))
    spec = {"grid": dict(grid)} if grid else {"settings": [dict(point) for point in points]}
    with transaction.atomic():
        group = RunGroup.objects.create(
            project=actor.project,
            name=title[:LONGEST_NAME],
            kind=RunGroup.Kind.SWEEP,
            spec={**spec, "config": dict(launch["config"])},
            created_by=actor.user,
        )
        for point in points:
            create_point(actor, group, launch, point)
    return group


def create_point(actor: Actor, group: RunGroup, launch: Mapping[str, Any], point: Settings) -> Run:
    config = {**launch["config"], **point}
    # A length in steps replaces one in epochs, and the other way round.
    for given, other in (("steps", "epochs"), ("epochs", "steps")):
        if given in point and other not in point:
            config.pop(other, None)
    named = f"{group.name}: {describe_point(point)}"
    run = create_run(actor=actor, **{**launch, "config": config, "name": named[:LONGEST_NAME]})
    Run.objects.filter(pk=run.pk).update(group=group)
    return run


def stop_group(*, actor: Actor, group: RunGroup) -> int:
    """Every run that is not over; what each has learned is saved first. Returns how many."""
    live = [run for run in group.runs.order_by("created_at") if not run.is_over]
    for run in live:
        request_stop(actor=actor, run=run)
    return len(live)
