"""Which sampling servers are wanted now: what settings, deployments and waiting calls ask for."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from django.conf import settings
from django.db.models import Q
from django.utils.text import slugify
from django.utils.timezone import now

from webapp.checkpoints.models import Checkpoint
from webapp.deployments.calls import LIVE
from webapp.deployments.models import Deployment, DeploymentChange, Replica, SamplingCall
from webapp.fleet.models import BaseModel

BUILT_IN = "built-in"
EXTERNAL = "external"
LEAST_RANK = 64  # what vLLM is ready for at least: a larger one takes a start of its own

Engine = Replica.Engine
Loading = DeploymentChange.Status.LOADING


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One server that is to run. `base_model` None: it serves every one that is offered."""

    name: str
    engine: str
    base_model: BaseModel | None = None
    deployment: Deployment | None = None
    max_rank: int = LEAST_RANK  # of the adapters that are asked for
    url: str = ""  # where somebody else starts it

    def fits(self, running: "Wanted") -> bool:
        """Whether a server that was started for another wish will do."""
        return self.max_rank <= running.max_rank


@dataclass(slots=True, kw_only=True)
class Asked:
    """What live deployments and calls that have not ended are about."""

    deployments: Sequence[Deployment]
    pending: dict[str, list[Checkpoint | None]]  # by deployment
    whole: set[str] = field(default_factory=set)  # checkpoints of all weights, by calls
    base_models: set[str] = field(default_factory=set)  # of all other calls
    awake: set[str] = field(default_factory=set)  # replicas that were used a moment ago
    ranks: dict[str, int] = field(default_factory=dict)  # the largest, by base model

    def is_busy(self, deployment: Deployment) -> bool:
        return deployment.status == Deployment.Status.LOADING or deployment.pk in self.pending

    def note_rank(self, base_model_id: str, rank: int) -> None:
        self.ranks[base_model_id] = max(rank, self.ranks.get(base_model_id, LEAST_RANK))

    def list_targets(self, deployment: Deployment) -> list[Checkpoint | None]:
        """What it serves, and what it is about to serve."""
        return [deployment.checkpoint, *self.pending.get(deployment.pk, [])]

    def count(self, name: str, deployments: Sequence[Deployment], *, is_called: bool) -> int:
        """As many as people want; where they want none, one while somebody needs it."""
        num = max((each.num_replicas for each in deployments), default=0)
        is_needed = is_called or name in self.awake or any(map(self.is_busy, deployments))
        return num or int(is_needed)


def list_wanted() -> list[Wanted]:
    if settings.SAMPLING_SERVER_URL:
        return [Wanted(name=EXTERNAL, engine=Engine.EXTERNAL, url=settings.SAMPLING_SERVER_URL)]
    base_models = list(BaseModel.objects.prefetch_related("names"))
    asked = read_asked() if base_models else None
    if asked is None:
        return []
    if settings.SERVING == Engine.VLLM:
        shared = [each for model in base_models for each in _want_shared(asked, model)]
        return [*shared, *_want_own(asked), *_want_beside(asked)]
    is_called = bool(asked.whole or asked.base_models)
    num = asked.count(BUILT_IN, asked.deployments, is_called=is_called)
    num = max(num, settings.SAMPLING_REPLICAS)
    return _want(num, Wanted(name=BUILT_IN, engine=Engine.BUILT_IN))


def read_asked() -> Asked:
    changes = DeploymentChange.objects.filter(status=Loading).select_related("checkpoint")
    pending: dict[str, list[Checkpoint | None]] = {}
    for change in changes:
        pending.setdefault(change.deployment_id, []).append(change.checkpoint)
    serving = Q(status__in=(Deployment.Status.LOADING, Deployment.Status.READY))
    found = Deployment.objects.filter(serving | Q(pk__in=pending))
    deployments = found.select_related("base_model", "checkpoint")
    asked = Asked(
        deployments=list(deployments.prefetch_related("base_model__names")), pending=pending
    )
    for deployment in asked.deployments:
        for target in filter(None, asked.list_targets(deployment)):
            asked.note_rank(deployment.base_model_id, target.rank)
    for status in LIVE:
        _read_calls(asked, status)
    idle = now() - timedelta(seconds=settings.IDLE_SECONDS)
    asked.awake.update(Replica.objects.filter(used_at__gt=idle).values_list("name", flat=True))
    return asked


def _read_calls(asked: Asked, status: str) -> None:
    calls = SamplingCall.objects.filter(status=status).order_by()
    kinds = calls.values_list("base_model_id", "checkpoint_id", "checkpoint__rank").distinct()
    for base_model_id, checkpoint_id, rank in kinds:
        if rank == 0:
            asked.whole.add(str(checkpoint_id))
        else:
            asked.base_models.add(base_model_id)
            asked.note_rank(base_model_id, rank or 0)


def _want_shared(asked: Asked, base_model: BaseModel) -> list[Wanted]:
    """Servers that hold a base model and adapters of it."""
    sharing = [
        each
        for each in asked.deployments
        if each.base_model_id == base_model.pk and not all(map(is_whole, asked.list_targets(each)))
    ]
    slug = slugify(base_model.name.replace("/", "-"))[:40]
    name = f"vllm-{slug}-{base_model.pk[-4:]}"
    num = asked.count(name, sharing, is_called=base_model.pk in asked.base_models)
    max_rank = asked.ranks.get(base_model.pk, LEAST_RANK)
    like = Wanted(name=name, engine=Engine.VLLM, base_model=base_model, max_rank=max_rank)
    return _want(num, like)


def _want_own(asked: Asked) -> list[Wanted]:
    """A model of all weights takes the base model's place in a server of its own."""
    wanted: list[Wanted] = []
    for each in asked.deployments:
        whole = {target.pk for target in asked.list_targets(each) if target and target.is_full}
        if whole:
            name = f"vllm-{each.pk}"
            num = asked.count(name, [each], is_called=bool(whole & asked.whole))
            base_model = each.base_model
            wanted += _want(
                num,
                Wanted(name=name, engine=Engine.VLLM, base_model=base_model, deployment=each),
            )
    return wanted


def _want_beside(asked: Asked) -> list[Wanted]:
    """What no deployment holds is answered by the built-in server, which takes whole models."""
    held = {each.checkpoint_id for each in asked.deployments}
    num = asked.count(BUILT_IN, [], is_called=bool(asked.whole - held))
    return _want(num, Wanted(name=BUILT_IN, engine=Engine.BUILT_IN))


def _want(num: int, like: Wanted) -> list[Wanted]:
    names = [like.name, *(f"{like.name}-{number}" for number in range(2, num + 1))][:num]
    return [replace(like, name=name) for name in names]


def is_whole(checkpoint: Checkpoint | None) -> bool:
    return checkpoint is not None and checkpoint.is_full
