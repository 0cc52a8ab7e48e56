"""Changes of what deployments serve: the old weights answer until the new ones are proven."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from training.errors import InvalidInput
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import services
from webapp.deployments.calls import note_checkpoint
from webapp.deployments.models import Deployment, DeploymentChange, HotLoad, SamplingCall
from webapp.deployments.queries import find_served
from workers.hotload import LoadFailed, WeightsMoved, in_database
from workers.vllm import ServerLost

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0  # before a lost server is asked again
MOVED_SECONDS = 0.02  # from the proof of new weights to the row that says they are served

T = TypeVar("T")
Transition = DeploymentChange.Transition


class Holder(Protocol):
    """One start of a server that is to hold what a deployment serves."""

    @property
    def is_in_place(self) -> bool:
        """Its one model has the weights: whatever is loaded takes the place of what was."""

    async def prepare(self, change: DeploymentChange) -> None:
        """What takes time and can be done before anybody waits for it."""

    async def serve(self, change: DeploymentChange) -> HotLoad | None:
        """Load and prove it. LoadFailed: the server holds what it held before."""

    async def take_back(self, change: DeploymentChange) -> None: ...


@dataclass(slots=True, eq=False)
class Gate:
    """What a deployment's requests pass. While it is closed new ones wait; nobody else does."""

    num_inside: int = 0
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    is_empty: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.is_open.set()
        self.is_empty.set()

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        await self.is_open.wait()
        self.num_inside += 1
        self.is_empty.clear()
        try:
            yield
        finally:
            self.num_inside -= 1
            if not self.num_inside:
                self.is_empty.set()

    @asynccontextmanager
    async def closed(self, *, drain: bool) -> AsyncIterator[None]:
        """`drain`: not before those inside have left."""
        self.is_open.clear()
        try:
            if drain:
                await self.is_empty.wait()
            yield
        finally:
            self.is_open.set()


class Changes:
    """The changes that are on their way, one of each deployment. Rows say what came of them.

    `find_holders`: the servers that are to hold it now; none: the change waits. `guard` does
    a change's work, and tells what nobody foresaw.
    """

    def __init__(
        self,
        find_holders: Callable[[DeploymentChange], Sequence[Holder]],
        guard: Callable[[DeploymentChange, Awaitable[None]], Awaitable[None]],
    ) -> None:
        self.find_holders = find_holders
        self.guard = guard
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.gates: defaultdict[str, Gate] = defaultdict(Gate)

    async def begin(self) -> None:
        """Start on what waits. A deployment's newer change waits for the end of its older one."""
        for change in await in_database(services.list_changes):
            holders = self.find_holders(change)
            if holders and change.deployment_id not in self.tasks:
                work = self._work(change, holders)
                self.tasks[change.deployment_id] = asyncio.create_task(work)

    async def answer(
        self, call: SamplingCall, work: Callable[[Checkpoint | None], Awaitable[T]]
    ) -> T:
        """Do it with what the call's deployment serves at this moment."""
        if call.deployment_id is None:
            return await work(call.checkpoint)
        while True:
            async with self.gates[call.deployment_id].passing():
                try:
                    checkpoint = await in_database(find_served, call.deployment_id)
                except Deployment.DoesNotExist:
                    raise InvalidInput("The deployment was deleted.") from None
                await in_database(note_checkpoint, call, checkpoint)
                with suppress(WeightsMoved):
                    return await work(checkpoint)
            await asyncio.sleep(MOVED_SECONDS)

    async def _work(self, change: DeploymentChange, holders: Sequence[Holder]) -> None:
        try:
            await self.guard(change, self._try(change, holders))
        finally:
            del self.tasks[change.deployment_id]

    async def _try(self, change: DeploymentChange, holders: Sequence[Holder]) -> None:
        try:
            await self._change(change, holders)
        except LoadFailed as error:
            await in_database(services.settle_change, change, error=str(error))
        except ServerLost as error:
            logger.warning("the change %s waits for a server: %s", change, error)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _change(self, change: DeploymentChange, holders: Sequence[Holder]) -> None:
        if any(holder.is_in_place for holder in holders):
            await self._change_in_place(change, holders)
            return
        loads = await load_everywhere(change, holders)
        if change.transition != Transition.SYNC:
            await self._settle(change, loads, pause=0.0)  # beside the old ones: nobody waits
            return
        began = time.perf_counter()
        async with self.gates[change.deployment_id].closed(drain=True):
            await self._settle(change, loads, pause=1000 * (time.perf_counter() - began))

    async def _change_in_place(self, change: DeploymentChange, holders: Sequence[Holder]) -> None:
        """Requests in flight go on with the new weights, or end on the old ones first."""
        await asyncio.gather(*(holder.prepare(change) for holder in holders))
        if change.transition != Transition.SYNC:
            await self._exchange(change, holders)
            return
        async with self.gates[change.deployment_id].closed(drain=True):
            await self._exchange(change, holders)

    async def _exchange(self, change: DeploymentChange, holders: Sequence[Holder]) -> None:
        """Where one of several servers does not agree, all go back to what was served."""
        try:
            loads = await load_everywhere(change, holders)
        except LoadFailed:
            await asyncio.gather(*(each.take_back(change) for each in holders))
            raise
        pauses = [load.pause_milliseconds or 0.0 for load in loads if load is not None]
        if not await self._settle(change, loads, pause=max(pauses, default=0.0)):
            await asyncio.gather(*(each.take_back(change) for each in holders))

    async def _settle(
        self, change: DeploymentChange, loads: Sequence[HotLoad | None], *, pause: float
    ) -> bool:
        return await in_database(
            services.settle_change, change, load=loads[0], pause_milliseconds=pause
        )

    @property
    def closed(self) -> list[str]:
        """Deployments whose new calls wait for the old ones: none is to take a place meanwhile."""
        return [key for key, gate in self.gates.items() if not gate.is_open.is_set()]


async def load_everywhere(
    change: DeploymentChange, holders: Sequence[Holder]
) -> list[HotLoad | None]:
    """All of them end. One that does not agree is enough to refuse; one that is lost is not."""
    loads: list[HotLoad | None] = []
    losses: list[ServerLost] = []
    works = (holder.serve(change) for holder in holders)
    for ended in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(ended, ServerLost):
            losses.append(ended)
        elif isinstance(ended, BaseException):
            raise ended
        else:
            loads.append(ended)
    if not loads:
        raise losses[0]
    return loads
