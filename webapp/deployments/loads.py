"""Every write to hot-loads: a load is a row from its first moment, and READY only by proof."""

from dataclasses import dataclass

from django.db import IntegrityError, transaction

from webapp.checkpoints.models import Checkpoint
from webapp.core.events import project_group, publish
from webapp.deployments.models import HotLoad

Status = HotLoad.Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a load measured. Agreement is judged by who writes it."""

    digest: str
    load_milliseconds: float
    probe_milliseconds: float
    server_logprobs: list[float]
    max_difference: float
    tolerance: float


def begin_load(checkpoint: Checkpoint, *, server: str) -> HotLoad:
    """A row with a name that no server has seen: caches of an earlier load cannot answer for it."""
    count = HotLoad.objects.filter(checkpoint=checkpoint).count()
    while True:
        count += 1
        name = f"{checkpoint.pk}-{checkpoint.digest[:8]}-{count}"
        try:
            with transaction.atomic():
                return HotLoad.objects.create(
                    checkpoint=checkpoint, server=server, adapter_name=name
                )
        except IntegrityError:
            continue  # another server took the name at this moment


def prove_load(load: HotLoad, proof: Proof) -> HotLoad:
    """READY where trainer and server agree, FAILED where they do not."""
    load.digest = proof.digest
    load.load_milliseconds = proof.load_milliseconds
    load.probe_milliseconds = proof.probe_milliseconds
    load.server_logprobs = proof.server_logprobs
    load.max_difference = proof.max_difference
    load.tolerance = proof.tolerance
    agrees = proof.max_difference <= proof.tolerance
    load.status = Status.READY if agrees else Status.FAILED
    if not agrees:
        load.error = (
            "The server's log-probabilities of the probe differ from the trainer's by up to "
            f"{proof.max_difference:.2g} nats; {proof.tolerance:.2g} is allowed. "
            "Nothing is served as this checkpoint."
        )
    load.save()
    _announce(load)
    return load


def fail_load(load: HotLoad, error: str) -> HotLoad:
    load.status = Status.FAILED
    load.error = error
    load.save(update_fields=["status", "error"])
    _announce(load)
    return load


def list_served(*, server: str) -> list[HotLoad]:
    """What one start of a server holds, proven."""
    served = HotLoad.objects.filter(server=server, status=Status.READY)
    return list(served.select_related("checkpoint"))


def find_served(checkpoint: Checkpoint, *, server: str) -> HotLoad | None:
    served = HotLoad.objects.filter(checkpoint=checkpoint, server=server, status=Status.READY)
    return served.select_related("checkpoint").first()


def lose_load(load: HotLoad) -> None:
    """Its server let go of it; the next call loads it again."""
    live = HotLoad.objects.filter(pk=load.pk, status__in=(Status.READY, Status.LOADING))
    live.update(status=Status.LOST)
    _announce(load)


def lose_unfinished() -> int:
    """Of a sampler that was killed in the midst of them, where no other one is at any."""
    return HotLoad.objects.filter(status=Status.LOADING).update(status=Status.LOST)


def lose_loads(*, of: str, but: str = "") -> int:
    """Everything that earlier starts of the server `of` held; `but` is the start that runs now."""
    lost = HotLoad.objects.filter(
        server__startswith=f"{of}/", status__in=(Status.READY, Status.LOADING)
    )
    return lost.exclude(server=but).update(status=Status.LOST)


def _announce(load: HotLoad) -> None:
    publish(project_group(load.checkpoint.project_id), "deployments")
