"""Loads checkpoints into a sampling server, each with the proof that it is that checkpoint."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import close_old_connections, connection

from training.errors import InvalidInput
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import loads
from webapp.deployments.models import DeploymentChange, HotLoad, Replica
from workers.proof import check_adapter, check_digest, probe
from workers.vllm import ModelMissing, SamplingServer, ServerLost
from workers.whole_folders import find_restored, open_model, remove_restored

T = TypeVar("T")

RETRY_SECONDS = 30.0  # a load that failed is not tried again for each of a hundred waiting calls
MAX_LOADED = 64  # no more than vLLM keeps in memory: others it would read again by itself
MAX_WHOLE = 4  # models by name: each may be restored on disk, and asked for in turns
RELOADS = 3  # for one call: a server that forgets what it has just loaded is no server


class LoadFailed(Exception):  # noqa: N818 - reads as the sentence it begins
    """The checkpoint is not served; the text says why."""


class WeightsMoved(ServerLost):
    """The server holds, or may have answered with, other weights than the ones asked for."""


async def in_database(work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """The one way from the event loop to rows."""

    def run() -> T:
        if not connection.in_atomic_block:  # what a caller's transaction stands on stays open
            close_old_connections()
        return work(*args, **kwargs)

    return await sync_to_async(run)()


@dataclass(slots=True, eq=False, kw_only=True)
class Loaded:
    """One checkpoint's load: on its way, served, or failed a moment ago."""

    task: asyncio.Task[HotLoad]
    is_full: bool = False
    num_users: int = 0
    failed_at: float = 0.0
    used_at: float = field(default_factory=time.monotonic)


class HotLoads:
    """What one start of one server holds, each under a name of its own. Whoever wants a checkpoint
    waits for the same load."""

    is_in_place = False

    def __init__(
        self,
        server: SamplingServer,
        start: str,
        *,
        replica: Replica | None = None,
        max_loaded: int = MAX_LOADED,
    ) -> None:
        self.server = server
        self.start = start  # as HotLoad.server says it
        self.replica = replica
        self.max_loaded = max_loaded
        self.restored = find_restored(start.partition("/")[0])
        self.loaded: dict[str, Loaded] = {}

    async def adopt(self) -> None:
        """What another sampler, or one before us, has loaded here serves on."""
        for load in await in_database(loads.list_served, server=self.start):
            task = asyncio.create_task(give(load))
            await asyncio.wait([task])
            self.loaded[load.checkpoint_id] = Loaded(task=task, is_full=load.checkpoint.is_full)

    async def use(
        self, checkpoint: Checkpoint, work: Callable[[HotLoad], Awaitable[T]]
    ) -> tuple[HotLoad, T]:
        """Do it with the proven load. One that the server has let go of is loaded again."""
        for _ in range(RELOADS):
            entry = self._find(checkpoint)
            try:
                return await self._use(entry, work)
            except ModelMissing:
                await self._forget(checkpoint, entry)
        raise ServerLost(f"it forgot {checkpoint.name} {RELOADS} times")

    async def prepare(self, change: DeploymentChange) -> None:
        """Nobody waits for weights that are loaded beside the old ones."""

    async def serve(self, change: DeploymentChange) -> HotLoad | None:
        """Load and prove what a deployment is to serve. None: the base model, which is there."""
        if change.checkpoint is None:
            return None
        entry = self.loaded.get(change.checkpoint.pk)
        if entry is not None and entry.failed_at:  # whoever asks once more wants it tried
            del self.loaded[change.checkpoint.pk]
        load, _ = await self.use(change.checkpoint, nothing_more)
        return load

    async def take_back(self, change: DeploymentChange) -> None:
        """Under a name of its own it is nobody's who did not ask for it."""

    def name_model(self, load: HotLoad) -> str:
        """What the server knows it by."""
        return load.adapter_name

    async def _use(
        self, entry: Loaded, work: Callable[[HotLoad], Awaitable[T]]
    ) -> tuple[HotLoad, T]:
        entry.num_users += 1
        try:
            # Shielded: one call's cancelling is not the others'.
            load = await asyncio.shield(entry.task)
            return load, await work(load)
        finally:
            entry.num_users -= 1
            entry.used_at = time.monotonic()

    def _find(self, checkpoint: Checkpoint) -> Loaded:
        entry = self.loaded.get(checkpoint.pk)
        if entry is None or is_stale(entry):
            task = asyncio.create_task(self._load(checkpoint))
            entry = Loaded(task=task, is_full=checkpoint.is_full)
            entry.task.add_done_callback(lambda task: note_failure(entry, task))
            self.loaded[checkpoint.pk] = entry
        return entry

    async def _load(self, checkpoint: Checkpoint) -> HotLoad:
        found = await in_database(loads.find_served, checkpoint, server=self.start)
        if found is not None:
            return found
        await self._make_room(checkpoint.is_full)
        load = await in_database(
            loads.begin_load, checkpoint, server=self.start, replica=self.replica
        )
        try:
            load = await self._prove(load)
        except InvalidInput as error:
            load = await in_database(loads.fail_load, load, str(error))
        except (ServerLost, ModelMissing) as error:
            raise ServerLost(f"the sampling server was lost during a load: {error}") from error
        finally:
            if load.status == HotLoad.Status.LOADING:
                await in_database(loads.lose_load, load)
        if load.status == HotLoad.Status.LOST:
            raise ServerLost("the sampling server ended during a load")
        if load.status != HotLoad.Status.READY:
            await self._unload(load)
            raise LoadFailed(load.error)
        return load

    async def _prove(self, load: HotLoad) -> HotLoad:
        checkpoint = load.checkpoint
        began = time.perf_counter()
        folder, digest = await self._open(load)
        opened = time.perf_counter()
        await self._give(load, folder)
        given = time.perf_counter()
        logprobs = await probe(self.server, load.adapter_name, checkpoint)
        proof = loads.Proof(
            digest=digest,
            transfer_milliseconds=1000 * (opened - began),
            load_milliseconds=1000 * (given - opened),
            probe_milliseconds=1000 * (time.perf_counter() - given),
            server_logprobs=logprobs,
            tolerance=settings.PROBE_TOLERANCE,
        )
        return await in_database(loads.prove_load, load, proof)

    async def _open(self, load: HotLoad) -> tuple[Path, str]:
        """The folder to load, and the digest of what was found in it."""
        checkpoint, target = load.checkpoint, self.restored / load.adapter_name
        _, base = await in_database(read_base, checkpoint)
        before = self._find_restored(checkpoint)
        return await asyncio.to_thread(open_checkpoint, checkpoint, base, target, before)

    def _find_restored(self, checkpoint: Checkpoint) -> Path | None:
        """Where the weights that a delta differs from lie whole, for a load that is in use."""
        entry = self.loaded.get(checkpoint.previous_id or "")
        if entry is None or not is_served(entry):
            return None
        folder = self.restored / entry.task.result().adapter_name
        return folder if folder.is_dir() else None

    async def _give(self, load: HotLoad, folder: Path) -> None:
        name, checkpoint = load.adapter_name, load.checkpoint
        try:
            if checkpoint.is_full:
                await self.server.load_model(name, folder)
            else:
                base, _ = await in_database(read_base, checkpoint)
                await self.server.load_adapter(name, folder, base=base)
        except ModelMissing as error:  # it did not find the folder, or takes no adapters at all
            raise InvalidInput(f"The sampling server refused it: {error}") from error

    async def _forget(self, checkpoint: Checkpoint, entry: Loaded) -> None:
        """The server does not hold it any more. Another call may have seen that before us."""
        if self.loaded.get(checkpoint.pk) is entry:
            del self.loaded[checkpoint.pk]
            if is_served(entry):
                load = entry.task.result()
                await in_database(loads.lose_load, load)
                await asyncio.to_thread(remove_restored, self.restored / load.adapter_name)

    async def _make_room(self, is_full: bool) -> None:
        """Let go of the longest unused ones; a later call loads them again under a new name."""
        alike = [key for key, entry in self.loaded.items() if entry.is_full is is_full]
        served = [key for key in alike if is_served(self.loaded[key])]
        limit = MAX_WHOLE if is_full else self.max_loaded
        idle = sorted(
            (key for key in served if not self.loaded[key].num_users),
            key=lambda key: self.loaded[key].used_at,
        )
        # All at once: while one is unloaded, another load may look for room too.
        gone = [self.loaded.pop(key) for key in idle[: max(0, len(served) - limit + 1)]]
        for entry in gone:
            await in_database(loads.lose_load, entry.task.result())
        for entry in gone:
            await self._unload(entry.task.result())

    async def _unload(self, load: HotLoad) -> None:
        is_full, name = load.checkpoint.is_full, load.adapter_name
        unload = self.server.unload_model if is_full else self.server.unload_adapter
        with suppress(ModelMissing):  # it was never taken in, or has gone by itself
            await unload(name)
        await asyncio.to_thread(remove_restored, self.restored / name)

    async def close(self) -> None:
        """The server keeps what is proven; what is on its way is nobody's any more."""
        under_way = [entry.task for entry in self.loaded.values() if not entry.task.done()]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    @property
    def names(self) -> list[str]:
        return sorted(
            entry.task.result().adapter_name for entry in self.loaded.values() if is_served(entry)
        )


async def give(load: HotLoad) -> HotLoad:
    return load


def is_served(entry: Loaded) -> bool:
    return entry.task.done() and not entry.failed_at


def is_stale(entry: Loaded) -> bool:
    return bool(entry.failed_at) and time.monotonic() - entry.failed_at > RETRY_SECONDS


def note_failure(entry: Loaded, task: asyncio.Task[HotLoad]) -> None:
    """Reading the exception here also says that somebody did."""
    if task.cancelled():
        entry.failed_at = -math.inf
        return
    error = task.exception()
    if error is not None:
        # What is wrong with the checkpoint stays so for a while; a lost server does not.
        entry.failed_at = time.monotonic() if isinstance(error, LoadFailed) else -math.inf


async def nothing_more(_: HotLoad) -> None:
    """A deployment asks for the load alone."""


def read_base(checkpoint: Checkpoint) -> tuple[str, Path]:
    """Its base model's name and folder."""
    return checkpoint.base_model.name, Path(checkpoint.base_model.path)


def open_checkpoint(
    checkpoint: Checkpoint, base: Path, target: Path, before: Path | None
) -> tuple[Path, str]:
    """The folder that a server is to read, once what is in it was compared with what was saved."""
    if checkpoint.deleted_at is not None:
        raise InvalidInput(f"The checkpoint {checkpoint.name} was deleted.")
    folder = settings.HONE_HOME / checkpoint.path
    if not folder.is_dir():
        raise InvalidInput(f"The files of {checkpoint.name} are not there any more.")
    if checkpoint.is_full:
        found, digest = open_model(folder, target, before)
    else:
        found, digest = folder, check_adapter(folder, base)
    check_digest(checkpoint, digest)
    return found, digest
