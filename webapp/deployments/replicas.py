"""Rows of sampling servers: every write to them, and which of them answer now."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from django.db.models import QuerySet
from django.utils.timezone import now

from webapp.accounts.models import Actor
from webapp.core.events import project_group, publish
from webapp.deployments import loads, services
from webapp.deployments.calls import kick_samplers
from webapp.deployments.models import Deployment, Replica, SamplingCall
from webapp.deployments.wanted import Wanted

Status = Replica.Status

MAX_RANK = "max_rank"  # of the adapters that a start of vLLM takes, beside what it says of itself


def begin_start(wanted: Wanted, *, start: str, url: str, pid: int | None) -> Replica:
    """A start that may become ready. Why the last one ended stays to be read until this one is."""
    columns: dict[str, Any] = {
        "base_model": wanted.base_model,
        "deployment": wanted.deployment,
        "engine": wanted.engine,
        "status": Status.STARTING,
        "start": start,
        "url": url,
        "pid": pid,
        "started_at": now(),
        "ready_at": None,
        "stats": {MAX_RANK: wanted.max_rank} if wanted.engine == Replica.Engine.VLLM else {},
        "stats_at": None,
    }
    replica, _ = Replica.objects.update_or_create(name=wanted.name, defaults=columns)
    _announce(replica)
    return replica


def mark_ready(name: str, *, start: str, version: str = "", warning: str = "") -> bool:
    """False: meanwhile it ended, or is not wanted any more."""
    starting = _find(name, start).filter(status=Status.STARTING)
    facts = {"version": version, "error": warning}
    return _change(starting, name, status=Status.READY, ready_at=now(), **facts)


def mark_lost(name: str, *, start: str, error: str) -> bool:
    """It ended or hung: what it held is loaded again by whoever asks for it."""
    return _end(_find(name, start), name, status=Status.LOST, error=error)


def mark_stopping(name: str) -> bool:
    """It gets no further calls; what it is at may end. False: it was not ready, and has none."""
    ready = Replica.objects.filter(name=name, status=Status.READY)
    return _change(ready, name, status=Status.STOPPED)


def mark_stopped(name: str) -> bool:
    """It has ended, and nobody wants another start of it."""
    loads.lose_loads(of=name)  # also where its row has gone with its deployment
    return _end(Replica.objects.filter(name=name), name, status=Status.STOPPED, start="", url="")


def end_starts(*, error: str) -> list[Replica]:
    """What a supervisor that was killed left in the rows. Returns them as they were."""
    left = list(Replica.objects.exclude(status=Status.STOPPED, start=""))
    for replica in left:
        mark_lost(replica.name, start=replica.start, error=error)
    return left


def note_stats(name: str, *, start: str, stats: Mapping[str, Any]) -> bool:
    """What its server says of itself, for who looks at it."""
    replica = _find(name, start).first()
    if replica is None:
        return False
    kept = {MAX_RANK: replica.stats[MAX_RANK]} if MAX_RANK in replica.stats else {}
    noted = _find(name, start).update(stats=kept | dict(stats), stats_at=now()) == 1
    if noted:
        _publish(Replica.objects.filter(name=name), "replicas")
    return noted


def note_used(names: Collection[str]) -> int:
    return Replica.objects.filter(name__in=names).update(used_at=now())


def list_ready() -> list[Replica]:
    """Those that take calls."""
    ready = Replica.objects.filter(status=Status.READY)
    return list(ready.select_related("base_model", "deployment"))


def explain_waits() -> dict[str, str]:
    """Why calls of a base model, by its id, find no server: in words, for who waits."""
    waiting = SamplingCall.objects.filter(status=SamplingCall.Status.QUEUED).order_by()
    wanted = set(waiting.values_list("base_model_id", flat=True).distinct())
    found = list(Replica.objects.filter(deployment=None).exclude(status=Status.STOPPED))
    return {pk: reason for pk in sorted(wanted) if (reason := _explain_wait(pk, found))}


def _explain_wait(base_model_id: str, found: Sequence[Replica]) -> str:
    here = [each for each in found if each.base_model_id in (None, base_model_id)]
    if any(each.status == Status.READY for each in here):
        return ""
    if not here:
        return "a sampling server is about to start for it"
    first = here[0]
    if first.error:
        return f"the sampling server {first.name} starts once more: {first.error}"
    return f"the sampling server {first.name} is starting"


def count_starting() -> int:
    return Replica.objects.filter(status__in=(Status.STARTING, Status.LOST)).count()


def list_stopping() -> set[str]:
    """Starts that get no further calls, but may end what they are at."""
    stopping = Replica.objects.filter(status=Status.STOPPED).exclude(start="")
    return {f"{name}/{start}" for name, start in stopping.values_list("name", "start")}


def scale_deployment(*, actor: Actor, deployment: Deployment, num_replicas: int) -> None:
    """How many servers hold it. 0: none, until somebody asks, and again when nobody does."""
    services.check_num_replicas(num_replicas)
    mine = Deployment.objects.visible_to(actor).filter(pk=deployment.pk)
    mine.update(num_replicas=num_replicas, changed_at=now())
    deployment.refresh_from_db()
    if num_replicas == 0:  # it was used a moment ago, and is to go to sleep now all the same
        Replica.objects.filter(base_model=deployment.base_model_id).update(used_at=None)
    publish(project_group(deployment.project_id), "deployments")
    kick_samplers()


def _find(name: str, start: str) -> QuerySet[Replica]:
    return Replica.objects.filter(name=name, start=start)


def _end(guarded: QuerySet[Replica], name: str, **columns: Any) -> bool:
    ended = _change(guarded, name, pid=None, stats={}, **columns)
    if ended:
        loads.lose_loads(of=name)
        services.reload_deployments()
    return ended


def _change(guarded: QuerySet[Replica], name: str, **columns: Any) -> bool:
    changed = guarded.update(**columns) == 1
    if changed:
        _announce(Replica.objects.get(name=name))
        kick_samplers()
    return changed


def _announce(replica: Replica) -> None:
    _publish(Replica.objects.filter(pk=replica.pk), "deployments")


def _publish(replicas: QuerySet[Replica], what: str) -> None:
    """To everybody who may be served by them: a server without deployment is everybody's."""
    for replica in replicas.select_related("deployment"):
        served = Deployment.objects.exclude(status=Deployment.Status.STOPPED).order_by()
        if replica.deployment_id is not None:
            served = served.filter(pk=replica.deployment_id)
        elif replica.base_model_id is not None:
            served = served.filter(base_model=replica.base_model_id)
        for project_id in served.values_list("project_id", flat=True).distinct():
            publish(project_group(project_id), what)
