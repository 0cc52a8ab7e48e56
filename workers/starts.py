"""Starts of replicas as a sampler uses them, and which of them answers which call."""

import json
import math
import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import httpx
from django.db.models import Q

from training.errors import InvalidInput
from webapp.checkpoints.models import Checkpoint
from webapp.deployments.models import DeploymentChange, HotLoad, Replica, SamplingCall
from webapp.deployments.replicas import MAX_RANK
from webapp.fleet.models import BaseModel
from workers.hotload import HotLoads, LoadFailed
from workers.in_place import InPlaceLoads
from workers.vllm import SamplingServer, ServerLost

IN_FLIGHT = 64  # what a server decodes together; more would only wait there instead of here
HEAD_TOKENS = 64  # prompts that begin alike find each other's prefix in one server's cache
HEAD_CHARACTERS = 256
UNEVEN = 1.25  # how much busier than the average one may be for the sake of its cache
PAUSE_SECONDS = 1.0  # before a lost server is asked again

Engine = Replica.Engine
LARGEST_RANK = 2**31 - 1
EVERY = ~Q(pk__in=())  # an empty Q would say nothing beside another one


@dataclass(slots=True, eq=False, kw_only=True)
class Start:
    """One start of one replica: everything that this sampler has there ends with it."""

    replica: Replica
    server: SamplingServer
    loads: HotLoads | InPlaceLoads
    limit: int = IN_FLIGHT
    calls: set[int] = field(default_factory=set)  # in flight
    told: set[str] = field(default_factory=set)  # base models that the built-in server knows
    cold: Counter[str] = field(default_factory=Counter)  # calls in flight, by base model
    warm: set[str] = field(default_factory=set)  # base models that have answered once
    paused_until: float = 0.0
    is_lost: bool = False
    is_others: bool = False  # whose one model's weights another sampler exchanges and asks
    is_used: bool = False  # since that was last written down

    @property
    def name(self) -> str:
        return name_start(self.replica)

    @property
    def room(self) -> int:
        is_paused = self.is_lost or self.is_others or time.monotonic() < self.paused_until
        return 0 if is_paused else max(0, self.limit - len(self.calls))

    @property
    def takes_whole(self) -> bool:
        """Models of all weights beside each other, each under a name of its own."""
        return self.replica.engine != Engine.VLLM

    @property
    def max_rank(self) -> int:
        """Of adapters; a larger one waits for a start that is ready for it."""
        return int(self.replica.stats.get(MAX_RANK, LARGEST_RANK))

    def pause(self) -> None:
        self.paused_until = time.monotonic() + PAUSE_SECONDS

    def can_answer(self, base_model: BaseModel, checkpoint: Checkpoint | None) -> bool:
        replica, is_whole = self.replica, checkpoint is not None and checkpoint.is_full
        if replica.deployment is not None:
            served = replica.deployment.checkpoint_id
            return checkpoint is not None and is_whole and served == checkpoint.pk
        if replica.base_model_id not in (None, base_model.pk):
            return False
        rank = checkpoint.rank if checkpoint else 0
        return self.takes_whole or (not is_whole and rank <= self.max_rank)

    async def close(self) -> None:
        await self.loads.close()
        await self.server.aclose()

    @property
    def is_in_place(self) -> bool:
        return self.loads.is_in_place

    async def prepare(self, change: DeploymentChange) -> None:
        await self.loads.prepare(change)

    async def serve(self, change: DeploymentChange) -> HotLoad | None:
        """Load and prove what a deployment is to serve. LoadFailed says why it is not served."""
        try:
            await self.open_base(change.deployment.base_model)
            return await self.loads.serve(change)
        except InvalidInput as error:
            raise LoadFailed(str(error)) from error

    async def take_back(self, change: DeploymentChange) -> None:
        await self.loads.take_back(change)

    def can_hold(self, change: DeploymentChange) -> bool:
        """What a change is to serve, beside what is served now or in its place."""
        replica, checkpoint = self.replica, change.checkpoint
        if self.is_lost:
            return False
        if replica.deployment_id is not None:
            is_whole = checkpoint is not None and checkpoint.is_full
            return is_whole and replica.deployment_id == change.deployment_id
        return self.can_answer(change.deployment.base_model, checkpoint)

    async def open_base(self, base_model: BaseModel) -> None:
        """One that was added since the built-in server started is read when it is asked for."""
        if self.replica.engine == Engine.BUILT_IN and base_model.name not in self.told:
            await self.server.load_model(base_model.name, Path(base_model.path))
            self.told.add(base_model.name)


def open_loads(replica: Replica, server: SamplingServer) -> HotLoads | InPlaceLoads:
    """A vLLM has one model: whole weights take its place, on a server of their deployment's own."""
    kind = InPlaceLoads if replica.engine == Engine.VLLM and replica.deployment_id else HotLoads
    return kind(server, name_start(replica), replica=replica)


def name_start(replica: Replica) -> str:
    """As HotLoad.server says it."""
    return f"{replica.name}/{replica.start}"


def describe_answerable(starts: Collection[Start]) -> Q:
    """The calls that one of these can answer."""
    among = Q(pk__in=())
    for start in starts:
        replica = start.replica
        if replica.deployment is not None:
            among |= Q(checkpoint=replica.deployment.checkpoint_id, checkpoint__rank=0)
            continue
        here = EVERY if replica.base_model_id is None else Q(base_model=replica.base_model_id)
        if not start.takes_whole:
            adapters = Q(checkpoint__rank__range=(1, start.max_rank))
            here &= Q(checkpoint=None) | adapters
        among |= here
    return among


def choose_start(starts: Iterable[Start], call: SamplingCall) -> Start | None:
    """The one whose cache knows the beginning of its prompt, unless it is the busiest by far.

    None: none that can answer it has room.
    """
    able = [each for each in starts if each.can_answer(call.base_model, call.checkpoint)]
    free = [each for each in able if each.room]
    if not free:
        return None
    total = sum(len(each.calls) for each in able) + 1
    most = math.ceil(UNEVEN * total / len(able))
    key = make_key(call)
    ranked = sorted(free, key=lambda each: weigh(key, each.replica.name), reverse=True)
    return next((each for each in ranked if len(each.calls) < most), ranked[0])


def choose_for_checkpoint(
    starts: Iterable[Start], base_model: BaseModel, checkpoint: Checkpoint | None
) -> Start | None:
    able = [each for each in starts if each.room and each.can_answer(base_model, checkpoint)]
    key = checkpoint.pk if checkpoint else base_model.pk
    return max(able, key=lambda each: weigh(key, each.replica.name), default=None)


def make_key(call: SamplingCall) -> str:
    """Equal where a server could use again what it has computed."""
    prompt = call.payload.get("prompt")
    if prompt is None:
        head = json.dumps(call.payload.get("messages"))[:HEAD_CHARACTERS]
    else:
        head = json.dumps(prompt[:HEAD_TOKENS])
    return f"{call.checkpoint_id or call.base_model_id} {head}"


def weigh(key: str, name: str) -> bytes:
    """Of all names one weighs most, and when that is gone the others keep their order."""
    return sha256(f"{name} {key}".encode()).digest()


def was_reached(error: BaseException | None) -> bool:
    """False: it died before it heard of the request, which is then not what broke it."""
    while error is not None:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return False
        error = error.__cause__
    return True


def lose(start: Start) -> ServerLost:
    return ServerLost(f"the sampling server {start.replica.name} is lost")
