"""Every write to hot-loads: a load is a row from its first moment, and READY only by proof."""

from dataclasses import asdict, dataclass
from typing import Any

from django.db import IntegrityError, transaction

from webapp.checkpoints.models import Checkpoint
from webapp.core.events import project_group, publish
from webapp.deployments.models import HotLoad, Replica

Status = HotLoad.Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a load measured. Agreement is judged by who writes it."""

    digest: str
    transfer_milliseconds: float
    load_milliseconds: float
    probe_milliseconds: float
    server_logprobs: list[float]
    tolerance: float
    pause_milliseconds: float = 0.0  # weights under a name of their own hold nobody up


def begin_load(
    checkpoint: Checkpoint,
    *,
    server: str,
    replica: Replica | None = None,
) -> HotLoad:
    """A row with a name that no server has seen: caches of an earlier load cannot answer for it."""
    count = HotLoad.objects.filter(checkpoint=checkpoint).count()
    while True:
        count += 1
        name = f"{checkpoint.pk}-{checkpoint.digest[:8]}-{count}"
        try:
            with transaction.atomic():
                return HotLoad.objects.create(
                    checkpoint=checkpoint,
                    server=server,
                    replica=replica,
                    deployment_id=replica.deployment_id if replica else None,
                    adapter_name=name,
                    export_milliseconds=checkpoint.export_milliseconds,
                )
        except IntegrityError:
            if not HotLoad.objects.filter(adapter_name=name).exists():
                raise  # the checkpoint's or the server's row has gone
            # Another server took the name at this moment.


def prove_load(load: HotLoad, proof: Proof) -> HotLoad:
    """READY where trainer and server agree, FAILED where they do not; LOST stays lost."""
    differences = measure_differences(load.checkpoint.probe["logprobs"], proof.server_logprobs)
    agrees = max(differences) <= proof.tolerance
    measured: dict[str, Any] = asdict(proof) | {
        "mean_difference": sum(differences) / len(differences),
        "max_difference": max(differences),
    }
    for name, value in measured.items():
        setattr(load, name, value)
    load.status = Status.READY if agrees else Status.FAILED
    load.error = "" if agrees else describe_difference(load, differences)
    loading = HotLoad.objects.filter(pk=load.pk, status=Status.LOADING)
    if loading.update(status=load.status, error=load.error, **measured) != 1:
        load.status, load.error = Status.LOST, "Its server has ended."
    _announce(load)
    return load


def measure_differences(trainer: list[float], server: list[float]) -> list[float]:
    """Of each token of the probe but the first, which follows nothing."""
    return [abs(a - b) for a, b in zip(trainer, server, strict=True)]


def describe_difference(load: HotLoad, differences: list[float]) -> str:
    largest = max(range(len(differences)), key=differences.__getitem__)
    token = load.checkpoint.probe["tokens"][largest + 1]
    return (
        "The server's log-probabilities of the probe differ from the trainer's by up to "
        f"{load.max_difference:.2g} nats, at its token {largest + 2} (id {token}), and by "
        f"{load.mean_difference:.2g} on average; {load.tolerance:.2g} is allowed. "
        "Nothing is served as this checkpoint."
    )


def fail_load(load: HotLoad, error: str) -> HotLoad:
    """What is wrong with files that somebody has deleted meanwhile is that."""
    load.checkpoint.refresh_from_db(fields=["deleted_at"])
    if load.checkpoint.deleted_at is not None:
        error = f"The checkpoint {load.checkpoint.name} was deleted."
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


def lose_loads(*, of: str) -> int:
    """Everything that starts of the server `of` held."""
    lost = HotLoad.objects.filter(
        server__startswith=f"{of}/", status__in=(Status.READY, Status.LOADING)
    )
    return lost.update(status=Status.LOST)


def _announce(load: HotLoad) -> None:
    publish(project_group(load.checkpoint.project_id), "deployments")
