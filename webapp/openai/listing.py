"""GET /v1/models: everything that a request's `model` may name in this project."""

from datetime import datetime
from typing import Any

from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.deployments.models import Deployment
from webapp.evals.models import Alias
from webapp.fleet.models import BaseModelName
from webapp.openai.targets import find_target

MOST_CHECKPOINTS = 500  # the newest; older ones answer all the same


def list_models(actor: Actor) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [
            *list_base_models(),
            *list_deployments(actor),
            *list_aliases(actor),
            *list_checkpoints(actor),
        ],
    }


def list_base_models() -> list[dict[str, Any]]:
    names = BaseModelName.objects.select_related("base_model")
    return [describe(each.name, each.base_model.added_at, kind="base_model") for each in names]


def list_deployments(actor: Actor) -> list[dict[str, Any]]:
    mine = Deployment.objects.in_project(actor).exclude(status=Deployment.Status.STOPPED)
    rows = mine.select_related("base_model").prefetch_related("base_model__names")
    return [
        describe(each.name, each.created_at, kind="deployment", parent=each.base_model.name)
        for each in rows
    ]


def list_aliases(actor: Actor) -> list[dict[str, Any]]:
    mine = Alias.objects.in_project(actor).exclude(checkpoint=None)
    rows = mine.select_related("checkpoint__base_model")
    return [
        describe(each.name, each.created_at, kind="alias", parent=each.checkpoint.base_model.name)
        for each in rows.prefetch_related("checkpoint__base_model__names")
        if each.checkpoint is not None
    ]


def list_checkpoints(actor: Actor) -> list[dict[str, Any]]:
    mine = Checkpoint.objects.in_project(actor).loadable().filter(is_ephemeral=False)
    rows = mine.filter(kind=Checkpoint.Kind.SAMPLER).select_related("run", "base_model")
    newest = rows.prefetch_related("base_model__names")[:MOST_CHECKPOINTS]
    return [
        describe(
            f"{each.run_id}/{each.name}",
            each.created_at,
            kind="checkpoint",
            parent=each.base_model.name,
        )
        for each in newest
    ]


def describe_model(actor: Actor, name: str) -> dict[str, Any]:
    """By any of its names; it is told under the one that was asked for."""
    target = find_target(actor, name)
    served = target.deployment or target.checkpoint
    if served is None:
        return describe(name, target.base_model.added_at, kind="base_model")
    kind = "deployment" if target.deployment else "checkpoint"
    return describe(name, served.created_at, kind=kind, parent=target.base_model.name)


def describe(
    name: str, created_at: datetime, *, kind: str, parent: str | None = None
) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(created_at.timestamp()),
        "owned_by": "hone",
        "kind": kind,
        "parent": parent,
    }
