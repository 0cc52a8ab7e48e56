"""How deployments and servers stand, in words and numbers: a status alone does not tell it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from webapp.deployments.models import Deployment, Replica
from webapp.deployments.queries import name_engine

Status = Deployment.Status

STOPPED = "It answers nobody until it is started with some weights."
ASLEEP = (
    "Scaled to zero: no server holds it. The next question wakes one, and waits until it has"
    " started."
)
AWAKE = "Scaled to zero: it sleeps again once nobody has asked for a while."
AWAKE_SHARED = (
    "Scaled to zero: no server runs on its account. The one that it shares with others answers"
    " while it runs; after that the next question wakes it."
)
WAKING = (Replica.Status.STARTING, Replica.Status.LOST)  # a lost one starts again
NO_SERVER = "No server is ready. Questions wait for one; none is lost."


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """`status` is what the badge is drawn for, `word` what it says."""

    status: str
    word: str
    sentence: str = ""


def describe_standing(deployment: Deployment, replicas: Sequence[Replica]) -> Standing:
    num_ready = sum(each.status == Replica.Status.READY for each in replicas)
    is_serving = deployment.status == Status.READY
    if deployment.status == Status.STOPPED:
        return Standing(status="stopped", word="stopped", sentence=STOPPED)
    is_waking = any(each.status in WAKING for each in replicas)
    if num_ready == 0 and deployment.num_replicas == 0 and not is_waking:
        return Standing(status="paused", word="asleep", sentence=ASLEEP)
    if num_ready == 0 and deployment.status in (Status.READY, Status.LOADING):
        return Standing(status="loading", word="waiting for a server", sentence=NO_SERVER)
    is_shared = any(each.deployment_id is None for each in replicas)
    sentence = _describe_number(num_ready, deployment.num_replicas, is_shared) if is_serving else ""
    return Standing(status=deployment.status, word=deployment.status, sentence=sentence)


def _describe_number(num_ready: int, num_wanted: int, is_shared: bool) -> str:
    if num_wanted == 0:
        return AWAKE_SHARED if is_shared else AWAKE
    if num_ready < num_wanted:
        return f"{num_ready} of {num_wanted} replicas are ready and answer everything meanwhile."
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLine:
    """One server as tables show it. Numbers are its own, None where it does not tell them."""

    row: Replica
    engine: str
    num_held: int
    rate: float | None  # tokens a second
    num_running: int | None
    num_waiting: int | None
    first_token: float | None  # milliseconds, half of all requests are faster
    each_token: float | None
    kv_cache_share: float | None

    @property
    def since(self) -> Any:
        return self.row.ready_at or self.row.started_at


def list_lines(replicas: Iterable[Replica]) -> list[ReplicaLine]:
    return [describe_replica(each) for each in replicas]


def describe_replica(replica: Replica) -> ReplicaLine:
    """What one that does not run said last is of no use any more."""
    stats = replica.stats if replica.status == Replica.Status.READY else {}
    return ReplicaLine(
        row=replica,
        engine=name_engine(replica),
        num_held=getattr(replica, "num_held", 0),
        rate=stats.get("sampled_tokens_per_second"),
        num_running=stats.get("running"),
        num_waiting=stats.get("waiting"),
        first_token=_to_milliseconds(stats.get("ttft_p50")),
        each_token=_to_milliseconds(stats.get("tpot_p50")),
        kv_cache_share=stats.get("kv_cache_share"),
    )


def _to_milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds
