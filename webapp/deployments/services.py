"""Every write to deployments, and the calls people make to what is served."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils.timezone import now

from webapp.accounts.audit import record_audit
from webapp.accounts.models import Actor
from webapp.checkpoints.chains import hold_weights
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import check_loadable
from webapp.core.errors import NotFound, UserError
from webapp.core.events import project_group, publish
from webapp.deployments.calls import kick_samplers, submit_call
from webapp.deployments.models import Deployment, DeploymentChange, HotLoad, SamplingCall
from webapp.deployments.queries import find_way_back
from webapp.fleet.models import BaseModel

Status = Deployment.Status
ChangeStatus = DeploymentChange.Status
Transition = DeploymentChange.Transition

DEFAULT_SEED = 7  # a fixed one: two models asked side by side draw the same numbers
MAX_SAMPLES = 16
MOST_REPLICAS = 16
ROLES = ("system", "user", "assistant", "tool")
RANGES: Mapping[str, tuple[float, float]] = {
    "max_tokens": (1, 1_000_000),
    "temperature": (0, 10),
    "top_p": (0.000001, 1),
    "top_k": (-1, 1_000_000),
    "seed": (0, 2**63 - 1),
}
WHOLE = ("max_tokens", "top_k", "seed")


def create_deployment(
    *,
    actor: Actor,
    name: str,
    base_model: BaseModel | None = None,
    checkpoint: Checkpoint | None = None,
    num_replicas: int = 1,
) -> Deployment:
    """Serve a checkpoint, or a base model as it is. A sampler loads it and says ready."""
    check_num_replicas(num_replicas)
    name = name.strip()
    if not name:
        raise UserError("A deployment needs a name.", field="name")
    if actor.project.aliases.filter(name=name).exists():
        raise UserError(f"An alias is named {name}: choose another name.", field="name")
    base_model = _choose_base_model(base_model, checkpoint)
    try:
        with transaction.atomic():
            hold_weights(checkpoint)
            deployment = Deployment.objects.create(
                project=actor.project,
                name=name,
                base_model=base_model,
                checkpoint=checkpoint,
                num_replicas=num_replicas,
            )
            DeploymentChange.objects.create(
                deployment=deployment, checkpoint=checkpoint, user=actor.user
            )
    except IntegrityError:
        raise UserError(
            f"There is a deployment named {name} already: change what it serves, or choose "
            "another name.",
            field="name",
        ) from None
    _announce(deployment)
    return deployment


@transaction.atomic
def change_checkpoint(
    *,
    actor: Actor,
    deployment: Deployment,
    checkpoint: Checkpoint | None,
    transition: str = "",
    identity: str = "",
) -> DeploymentChange:
    """Serve other weights of the same base model; None: the base model as it is.

    What is served stays so until the new weights are proven. A deployment that serves nothing, as
    one that was stopped, starts with them. A change that still waits is superseded.
    """
    if transition not in Transition.values:
        raise UserError(
            f"transition is {transition!r}; it is async, sync, or left out.", field="transition"
        )
    _check_fits(deployment, checkpoint)
    mine = Deployment.objects.visible_to(actor).filter(pk=deployment.pk).hold()
    hold_weights(checkpoint)
    starting = {"checkpoint": checkpoint, "status": Status.LOADING, "error": ""}
    started = mine.filter(_serves_nothing()).update(**starting)
    if mine.update(changed_at=now()) != 1:
        raise NotFound(f"There is no deployment {deployment.pk}.")
    previous_id = deployment.checkpoint_id
    deployment.refresh_from_db()
    _supersede(deployment)
    change = DeploymentChange.objects.create(
        deployment=deployment,
        checkpoint=checkpoint,
        previous_id=previous_id if started else deployment.checkpoint_id,
        transition=transition,
        identity=identity[:200],
        user=actor.user,
    )
    _announce(deployment)
    return change


def _serves_nothing() -> Q:
    """Stopped, failed, or still waiting for its first weights; not one that only loads again."""
    served = DeploymentChange.objects.filter(deployment=OuterRef("pk"), status=ChangeStatus.SERVED)
    is_new = Q(status=Status.LOADING) & ~Exists(served)
    return is_new | Q(status__in=(Status.STOPPED, Status.FAILED))


def roll_back(*, actor: Actor, deployment: Deployment) -> DeploymentChange:
    """Serve again what was served before the weights that are served now."""
    if (back := find_way_back(deployment)) is None:
        raise UserError(f"{deployment.name} has served nothing else: there is no way back.")
    return change_checkpoint(
        actor=actor, deployment=deployment, checkpoint=back.checkpoint, identity=back.identity
    )


def list_changes() -> list[DeploymentChange]:
    """What samplers have to load and prove: the newest wish of each deployment."""
    newest: dict[str, DeploymentChange] = {}
    pending = DeploymentChange.objects.filter(status=ChangeStatus.LOADING)
    whole = pending.select_related("deployment__base_model", "checkpoint__base_model", "previous")
    for change in whole.prefetch_related("deployment__base_model__names").order_by("pk"):
        newest[change.deployment_id] = change
    return list(newest.values())


@transaction.atomic
def settle_change(
    change: DeploymentChange,
    *,
    load: HotLoad | None = None,
    error: str = "",
    pause_milliseconds: float | None = None,
) -> bool:
    """The new weights are proven and answer from now on, or `error` says why the old ones stay.

    False: a newer change came first, or the deployment was stopped.
    """
    Deployment.objects.filter(pk=change.deployment_id).hold()
    pending = DeploymentChange.objects.filter(pk=change.pk, status=ChangeStatus.LOADING)
    ended = pending.update(
        status=ChangeStatus.FAILED if error else ChangeStatus.SERVED,
        error=error,
        hot_load=load,
        pause_milliseconds=pause_milliseconds,
        ended_at=now(),
    )
    if ended and error:
        _fail_first(change, error)
    elif ended:
        _serve(change, load)
    publish(project_group(change.deployment.project_id), "deployments")
    return ended == 1


def _serve(change: DeploymentChange, load: HotLoad | None) -> None:
    if load is not None and load.deployment_id is None:
        HotLoad.objects.filter(pk=load.pk).update(deployment=change.deployment_id)
    Deployment.objects.filter(pk=change.deployment_id).update(
        checkpoint=change.checkpoint_id, status=Status.READY, error="", changed_at=now()
    )
    waiting = SamplingCall.objects.filter(
        deployment=change.deployment_id, status=SamplingCall.Status.QUEUED
    )
    waiting.update(checkpoint=change.checkpoint_id)


def _fail_first(change: DeploymentChange, error: str) -> None:
    """A deployment that served nothing before it still does not."""
    waits = Deployment.objects.filter(
        pk=change.deployment_id, status=Status.LOADING, checkpoint=change.checkpoint_id
    )
    waits.update(status=Status.FAILED, error=error, changed_at=now())


@transaction.atomic
def stop_deployment(*, actor: Actor, deployment: Deployment) -> None:
    mine = Deployment.objects.visible_to(actor).filter(pk=deployment.pk)
    if mine.update(status=Status.STOPPED, error="", changed_at=now()) == 1:
        _supersede(deployment, error="The deployment was stopped.")
    deployment.refresh_from_db()
    _announce(deployment)


@transaction.atomic
def delete_deployment(*, actor: Actor, deployment: Deployment) -> None:
    """Its name is free again. Loads and calls that it was asked for keep their own rows."""
    Deployment.objects.visible_to(actor).filter(pk=deployment.pk).hold().delete()
    details = {"deployment": deployment.pk, "name": deployment.name}
    record_audit(
        project=deployment.project_id, user=actor.user, event="deployment_deleted", **details
    )
    _announce(deployment)


def _supersede(deployment: Deployment, error: str = "") -> None:
    pending = deployment.changes.filter(status=ChangeStatus.LOADING)
    pending.update(status=ChangeStatus.SUPERSEDED, error=error, ended_at=now())


def list_loading() -> list[Deployment]:
    """What a sampler has to load and prove again; what is new to a deployment is a change."""
    pending = DeploymentChange.objects.filter(
        deployment=OuterRef("pk"), checkpoint=OuterRef("checkpoint"), status=ChangeStatus.LOADING
    )
    loading = Deployment.objects.filter(~Exists(pending), status=Status.LOADING)
    whole = loading.select_related("base_model", "checkpoint")
    return list(whole.prefetch_related("base_model__names"))


def mark_ready(deployment: Deployment, hot_load: HotLoad | None) -> bool:
    """False: meanwhile it was stopped, another checkpoint was chosen, or the load was lost."""
    if hot_load is not None and hot_load.deployment_id is None:
        HotLoad.objects.filter(pk=hot_load.pk).update(deployment=deployment)
    seen = _as_seen(deployment)
    if hot_load is not None:  # its server may have ended a moment ago
        held = HotLoad.objects.filter(pk=hot_load.pk, status=HotLoad.Status.READY)
        seen = seen.filter(Exists(held))
    return _change(seen, deployment, status=Status.READY, error="")


def mark_failed(deployment: Deployment, error: str) -> bool:
    """False: meanwhile it was stopped, or another checkpoint was chosen."""
    return _change(_as_seen(deployment), deployment, status=Status.FAILED, error=error)


def reload_deployments() -> int:
    """What was ready and is held by no server now is loaded and proven again.

    One that sleeps until somebody asks is proven then.
    """
    held = HotLoad.objects.filter(status=HotLoad.Status.READY)
    ready = Deployment.objects.filter(status=Status.READY, num_replicas__gt=0)
    gone = ready.exclude(checkpoint=None).exclude(checkpoint__in=held.values("checkpoint"))
    return sum(_change(ready.filter(pk=each.pk), each, status=Status.LOADING) for each in gone)


def ask(  # noqa: PLR0913 - who is asked, what and how, by name
    *,
    actor: Actor,
    messages: Sequence[Mapping[str, str]],
    checkpoint: Checkpoint | None = None,
    base_model: BaseModel | None = None,
    deployment: Deployment | None = None,
    params: Mapping[str, Any] | None = None,
    purpose: str = SamplingCall.Purpose.PLAYGROUND,
    is_streamed: bool = False,
    num_alternatives: int = 0,
) -> SamplingCall:
    """Ask a checkpoint, a base model or a deployment; `params` may hold `num_samples` too.

    `num_alternatives`: so many of the likeliest tokens at each place of the answer are told.
    """
    if deployment is not None:
        _check_serves(deployment)
        base_model, checkpoint = deployment.base_model, deployment.checkpoint
    chosen = {"seed": DEFAULT_SEED, "max_tokens": 256, **(params or {})}
    num_samples = _check_number("num_samples", chosen.pop("num_samples", 1), (1, MAX_SAMPLES))
    return submit_call(
        project=actor.project,
        purpose=purpose,
        base_model=_choose_base_model(base_model, checkpoint),
        checkpoint=checkpoint,
        deployment=deployment,
        is_streamed=is_streamed,
        payload={
            "messages": check_messages(messages),
            "num_samples": int(num_samples),
            "params": check_params(chosen),
            "prompt_logprobs": False,
            **({"topk_sample_logprobs": num_alternatives} if num_alternatives else {}),
        },
    )


def check_num_replicas(num_replicas: int) -> None:
    if not 0 <= num_replicas <= MOST_REPLICAS:
        raise UserError(
            f"A deployment has between 0 and {MOST_REPLICAS} replicas, not {num_replicas}.",
            field="num_replicas",
        )


def check_messages(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """What a chat template can take: known roles, text, and somebody to answer at the end."""
    if not messages:
        raise UserError("Write a message first.", field="messages")
    checked = []
    for place, message in enumerate(messages, start=1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise UserError(
                f"Message {place} has the role {role!r}; known ones are {', '.join(ROLES)}.",
                field="messages",
            )
        if not isinstance(content, str) or not content.strip():
            raise UserError(f"Message {place} is empty.", field="messages")
        checked.append({"role": role, "content": content})
    if checked[-1]["role"] == "assistant":
        raise UserError(
            "The last message is the assistant's: there is nothing to answer.", field="messages"
        )
    return checked


def check_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling settings in range, by name; `stop` is strings, or token ids, or absent."""
    checked: dict[str, Any] = {
        name: _check_number(name, params[name], limits)
        for name, limits in RANGES.items()
        if params.get(name) is not None
    }
    if unknown := set(params) - set(RANGES) - {"stop"}:
        raise UserError(f"Unknown sampling setting {min(unknown)}.", field=min(unknown))
    if (stop := params.get("stop")) is not None:
        stops = [stop] if isinstance(stop, str) else stop
        kinds = {type(each) for each in stops} if isinstance(stops, list) else {None}
        if kinds not in (set(), {str}, {int}):
            raise UserError("stop is a list of strings or of token ids.", field="stop")
        checked["stop"] = stops
    return checked


def _check_number(name: str, value: Any, limits: tuple[float, float]) -> float | int:
    low, high = limits
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise UserError(f"{name} is {value!r}; it lies between {low:g} and {high:g}.", field=name)
    if name in WHOLE and int(value) != value:
        raise UserError(f"{name} is {value!r}; it is a whole number.", field=name)
    return int(value) if name in WHOLE else value


def _choose_base_model(base_model: BaseModel | None, checkpoint: Checkpoint | None) -> BaseModel:
    if checkpoint is not None:
        _check_alive(checkpoint)
        base_model = checkpoint.base_model
    if base_model is None:
        raise UserError("Choose a checkpoint or a base model.", field="checkpoint")
    return base_model


def _check_fits(deployment: Deployment, checkpoint: Checkpoint | None) -> None:
    if checkpoint is None:
        return
    _check_alive(checkpoint)
    if checkpoint.base_model_id != deployment.base_model_id:
        raise UserError(
            f"{deployment.name} serves {deployment.base_model}, and the checkpoint "
            f"{checkpoint.name} belongs to {checkpoint.base_model}.",
            field="checkpoint",
        )


def _check_alive(checkpoint: Checkpoint) -> None:
    if checkpoint.deleted_at is not None:
        raise UserError(f"The checkpoint {checkpoint.name} was deleted.", field="checkpoint")
    check_loadable(checkpoint)


def _check_serves(deployment: Deployment) -> None:
    if deployment.status == Status.STOPPED:
        raise UserError(f"{deployment.name} is stopped: start it first.", field="deployment")
    if deployment.status == Status.FAILED:
        raise UserError(f"{deployment.name} does not serve: {deployment.error}", field="deployment")


def _as_seen(deployment: Deployment) -> QuerySet[Deployment]:
    return Deployment.objects.filter(
        pk=deployment.pk, status=Status.LOADING, checkpoint=deployment.checkpoint_id
    )


def _change(guarded: QuerySet[Deployment], deployment: Deployment, **columns: Any) -> bool:
    if changed := guarded.update(changed_at=now(), **columns) == 1:
        publish(project_group(deployment.project_id), "deployments")
    return changed


def _announce(deployment: Deployment) -> None:
    publish(project_group(deployment.project_id), "deployments")
    kick_samplers()
