"""What a request's `model` means: weights by any of the names that they have here."""

from dataclasses import dataclass

from django.db.models import Q

from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import check_loadable, find_by_tinker_path
from webapp.core.errors import NotFound
from webapp.deployments.models import Deployment
from webapp.evals.models import Alias
from webapp.firetitan.deployment_services import find_by_name
from webapp.firetitan.promotion import find_model
from webapp.fleet.models import BaseModel

Status = Deployment.Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What answers. `deployment`: which was asked, with the checkpoint that it serves now."""

    base_model: BaseModel
    checkpoint: Checkpoint | None = None
    deployment: Deployment | None = None


def find_target(actor: Actor, name: str) -> Target:
    """A deployment's name or id, an alias, `accounts/<account>/...`, a checkpoint's id,
    `<run>/<name>` or `tinker://` path, or a base model's name. What this actor may not see does
    not exist.
    """
    name = name.rpartition("#")[2].replace("\0", "")
    if name.startswith("accounts/"):
        return find_resource(actor, name)
    if name.startswith("tinker://"):
        return of_checkpoint(find_by_tinker_path(actor, name))
    deployment = find_deployment(actor, name)
    if deployment is not None:
        return of_deployment(deployment)
    alias = find_alias(actor, name)
    return of_alias(alias) if alias is not None else find_weights(actor, name)


def find_weights(actor: Actor, name: str) -> Target:
    """A base model's name, or a checkpoint's id or `<run>/<name>`."""
    base_model = BaseModel.objects.filter(names__name=name).order_by().first()
    if base_model is not None:
        return Target(base_model=base_model)
    checkpoint = find_checkpoint(actor, name)
    if checkpoint is None:
        raise NotFound(
            f"There is no model {name[:200]!r}: GET /v1/models lists what there is.", field="model"
        )
    return of_checkpoint(checkpoint)


def find_resource(actor: Actor, name: str) -> Target:
    if "/deployments/" in name:
        return of_deployment(find_by_name(actor, name))
    base_model, checkpoint = find_model(actor, name)
    return Target(base_model=base_model, checkpoint=checkpoint)


def find_deployment(actor: Actor, name: str) -> Deployment | None:
    mine = Deployment.objects.in_project(actor).select_related("base_model", "checkpoint")
    return mine.filter(Q(name=name) | Q(pk=name)).first()


def find_alias(actor: Actor, name: str) -> Alias | None:
    mine = Alias.objects.in_project(actor).select_related("checkpoint__base_model")
    return mine.select_related("checkpoint__run").filter(name=name).first()


def of_alias(alias: Alias) -> Target:
    """What it names at this moment; a move changes the next answer."""
    if alias.checkpoint is None:
        raise NotFound(f"The alias {alias.name} names no checkpoint yet.", field="model")
    return of_checkpoint(alias.checkpoint)


def of_deployment(deployment: Deployment) -> Target:
    """One that loads its first weights answers when it has them: the call waits."""
    if deployment.status == Status.STOPPED:
        raise NotFound(f"The deployment {deployment.name} is stopped.", field="model")
    if deployment.status == Status.FAILED:
        raise NotFound(
            f"The deployment {deployment.name} does not serve: {deployment.error}", field="model"
        )
    return Target(
        base_model=deployment.base_model, checkpoint=deployment.checkpoint, deployment=deployment
    )


def find_checkpoint(actor: Actor, name: str) -> Checkpoint | None:
    """By its id, or by its run's id or name and its own name: the newest of a sampler's."""
    mine = Checkpoint.objects.in_project(actor).alive().select_related("base_model", "run")
    run, separator, own = name.rpartition("/")
    if not separator:
        return mine.filter(pk=name).first()
    named = mine.loadable().filter(Q(run=run) | Q(run__name=run), name=own)
    # A sampler's weights before the same name's training state.
    return named.order_by("kind", "-created_at").first()


def of_checkpoint(checkpoint: Checkpoint) -> Target:
    check_loadable(checkpoint)
    return Target(base_model=checkpoint.base_model, checkpoint=checkpoint)
