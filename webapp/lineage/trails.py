"""Where one thing comes from, as breadcrumbs: the chain from its data to itself."""

from dataclasses import dataclass
from typing import Any

from django.urls import reverse

from webapp.checkpoints.models import Checkpoint
from webapp.datasets.models import DatasetVersion
from webapp.deployments.models import Deployment
from webapp.evals.models import Evaluation
from webapp.runs.models import Run

MOST_CRUMBS = 8  # above them an ellipsis stands for the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Crumb:
    kind: str
    text: str
    url: str = ""


Thing = DatasetVersion | Run | Checkpoint | Evaluation | Deployment


def list_origins(thing: Thing) -> list[Crumb]:
    """From its first ancestor to its nearest, without itself: a query for each."""
    crumbs: list[Crumb] = []
    at, project_id = find_source(thing), thing.project_id
    while at is not None:
        if len(crumbs) == MOST_CRUMBS:
            crumbs.append(Crumb(kind="more", text="…"))
            break
        is_ours = getattr(at, "project_id", project_id) == project_id
        crumbs.append(make_crumb(at, is_ours=is_ours))
        at = find_source(at) if is_ours else None
    return crumbs[::-1]


def find_source(thing: Any) -> Any | None:
    """What it came of first: of a branch that is its checkpoint, and not the data."""
    if isinstance(thing, DatasetVersion):
        return _find(DatasetVersion, thing.derived_from_id, "dataset")
    if isinstance(thing, Run):
        parent = _find(Checkpoint, thing.parent_id)
        return (
            parent or _find(DatasetVersion, thing.dataset_version_id, "dataset") or thing.base_model
        )
    if isinstance(thing, Checkpoint):
        return thing.run
    if isinstance(thing, Evaluation | Deployment):
        return _find(Checkpoint, thing.checkpoint_id, "run") or thing.base_model
    return None


def _find(model: type[Any], pk: str | None, *related: str) -> Any | None:
    return model.objects.select_related(*related).filter(pk=pk).first() if pk else None


PAGES = {
    DatasetVersion: ("dataset version", "version"),
    Run: ("run", "run"),
    Checkpoint: ("checkpoint", "checkpoint"),
}


def make_crumb(thing: Any, *, is_ours: bool) -> Crumb:
    kind, page = PAGES.get(type(thing), ("base model", ""))
    if not is_ours:
        return Crumb(kind=kind, text=f"another project's {kind}")
    return Crumb(kind=kind, text=str(thing), url=reverse(page, args=[thing.pk]) if page else "")
