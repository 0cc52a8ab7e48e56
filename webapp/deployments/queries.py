"""What pages and programs ask about serving."""

from collections.abc import Iterable
from dataclasses import dataclass

from django.db.models import Count, OuterRef, Prefetch, Q, QuerySet, Subquery

from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.deployments.models import (
    Deployment,
    DeploymentChange,
    DeploymentQuerySet,
    HotLoad,
    Replica,
)

ENGINES = {
    Replica.Engine.BUILT_IN: "built-in generator",
    Replica.Engine.VLLM: "vLLM",
    Replica.Engine.EXTERNAL: "external server",
}
# Ended ones that no deployment wants stay as rows; a page shows those of the last start or so.
SHOWN_CHANGES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """The change of a deployment that is under way, and how far it is."""

    change: DeploymentChange
    load: HotLoad | None

    @property
    def step(self) -> str:
        """What is waited for now."""
        if self.change.checkpoint_id is None:
            return "a sampling server takes the base model's own weights back"
        if self.load is None:
            return "waits for a sampling server"
        return f"{self.load.replica or 'a sampling server'} is loading it, and then proves it"


def find_served(deployment_id: str) -> Checkpoint | None:
    """What a deployment serves at this moment; None: its base model."""
    whole = Deployment.objects.select_related("checkpoint__base_model")
    return whole.get(pk=deployment_id).checkpoint


def find_proof(checkpoint: Checkpoint) -> HotLoad | None:
    """The newest load that serves this checkpoint now. None: nothing does."""
    ready = checkpoint.hot_loads.filter(status=HotLoad.Status.READY)
    return ready.select_related("replica").first()


def find_last_load(deployment: Deployment) -> HotLoad | None:
    """The load that a deployment's page shows, with its proof, or with why it failed."""
    if deployment.checkpoint is None:
        return None
    loads = deployment.checkpoint.hot_loads.select_related("replica")
    return find_proof(deployment.checkpoint) or loads.first()


def with_pending(deployments: DeploymentQuerySet) -> DeploymentQuerySet:
    """With the id of the change that is under way, of the same moment as what is served."""
    changes = DeploymentChange.objects.filter(
        deployment=OuterRef("pk"), status=DeploymentChange.Status.LOADING
    )
    return deployments.annotate(pending_id=Subquery(changes.values("pk")[:1]))


def find_pending(deployment_id: str) -> Pending | None:
    pending = DeploymentChange.objects.filter(
        deployment=deployment_id, status=DeploymentChange.Status.LOADING
    )
    change = pending.select_related("checkpoint__run", "user").defer("checkpoint__probe").first()
    if change is None:
        return None
    loads = HotLoad.objects.filter(
        checkpoint=change.checkpoint_id or "", status=HotLoad.Status.LOADING
    )
    return Pending(change=change, load=loads.select_related("replica").first())


def list_changes(deployment_id: str) -> list[DeploymentChange]:
    """The newest first."""
    changes = DeploymentChange.objects.filter(deployment=deployment_id).select_related(
        "checkpoint__run", "previous__run", "user", "hot_load"
    )
    slim = changes.defer("checkpoint__probe", "previous__probe", "hot_load__server_logprobs")
    return list(slim[:SHOWN_CHANGES])


def find_way_back(deployment: Deployment) -> DeploymentChange | None:
    """What was served before the weights that are served now. None: nothing was."""
    served = deployment.changes.filter(status=DeploymentChange.Status.SERVED)
    before = served.exclude(checkpoint=deployment.checkpoint_id)
    if deployment.checkpoint_id is not None:  # in SQL nothing is unequal to NULL
        before = served.filter(~Q(checkpoint=deployment.checkpoint_id) | Q(checkpoint=None))
    return before.select_related("checkpoint__run").defer("checkpoint__probe").first()


def list_replicas() -> QuerySet[Replica]:
    """With how many checkpoints each of them holds, as `num_held`."""
    held = Count("hot_loads", filter=Q(hot_loads__status=HotLoad.Status.READY))
    replicas = Replica.objects.annotate(num_held=held).select_related("deployment", "base_model")
    return replicas.prefetch_related("base_model__names")


def list_replicas_for(actor: Actor) -> QuerySet[Replica]:
    """Servers are everybody's, but for those that hold a deployment of another project."""
    if actor.may_administer:
        return list_replicas()
    mine = Deployment.objects.visible_to(actor).values("pk")
    return list_replicas().filter(Q(deployment=None) | Q(deployment__in=mine))


def choose_replicas(deployment: Deployment, replicas: Iterable[Replica]) -> list[Replica]:
    """Its own, else those that it shares with others of its base model."""
    wanted = [each for each in replicas if each.start or each.status != Replica.Status.STOPPED]
    own = [each for each in wanted if each.deployment_id == deployment.pk]
    shared = (None, deployment.base_model_id)
    return own or [
        each for each in wanted if each.deployment_id is None and each.base_model_id in shared
    ]


def list_replicas_of(deployment: Deployment) -> list[Replica]:
    own_or_shared = Q(deployment=None) | Q(deployment=deployment)
    return choose_replicas(deployment, list_replicas().filter(own_or_shared))


def for_list(deployments: DeploymentQuerySet) -> DeploymentQuerySet:
    """With all that a row of the list shows."""
    pending = DeploymentChange.objects.filter(status=DeploymentChange.Status.LOADING)
    return (
        deployments.select_related("base_model", "checkpoint__run")
        .defer("checkpoint__probe")
        .prefetch_related(
            "base_model__names",
            "hot_loads",
            Prefetch("changes", pending.select_related("checkpoint"), to_attr="pending_changes"),
        )
    )


def name_engine(replica: Replica) -> str:
    """`vLLM 0.32.0`"""
    return f"{ENGINES[Replica.Engine(replica.engine)]} {replica.version}".strip()


def describe_engines(replicas: Iterable[Replica]) -> str:
    """Of those that answer now: `vLLM 0.32.0 on 2 replicas`; empty where none does."""
    counts: dict[str, int] = {}
    for replica in replicas:
        if replica.status == Replica.Status.READY:
            article = "" if replica.engine == Replica.Engine.VLLM else "the "
            name = f"{article}{name_engine(replica)}"
            counts[name] = counts.get(name, 0) + 1
    return " and ".join(
        name if num == 1 else f"{name} on {num} replicas" for name, num in counts.items()
    )
