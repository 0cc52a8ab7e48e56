"""Loads checkpoints into a sampling server, each with the proof that it is that checkpoint."""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import close_old_connections

from training.errors import InvalidInput
from training.types import SampleRequest, SamplingParams
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import loads
from webapp.deployments.models import HotLoad
from workers.vllm import ModelMissing, SamplingServer, ServerLost
from workers.whole_folders import find_restored, open_model, remove_restored

T = TypeVar("T")

ADAPTER_FILE = "adapter_model.safetensors"
RETRY_SECONDS = 30.0  # a load that failed is not tried again for each of a hundred waiting calls
MAX_LOADED = 64
MAX_WHOLE = 4  # models by name: each may be restored on disk, and asked for in turns
HASHED_BYTES = 1 << 20
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class LoadFailed(Exception):  # noqa: N818 - reads as the sentence it begins
    """The checkpoint is not served; the text says why."""


async def in_database(work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """The one way from the event loop to rows."""

    def run() -> T:
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
    """What one start of one server holds. Whoever wants a checkpoint waits for the same load."""

    def __init__(self, server: SamplingServer, start: str) -> None:
        self.server = server
        self.start = start  # as HotLoad.server says it
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
        """Do it with the proven load. One that the server has let go of is loaded again, once."""
        entry = self._find(checkpoint)
        try:
            return await self._use(entry, work)
        except ModelMissing:
            await self._forget(checkpoint, entry)
            return await self._use(self._find(checkpoint), work)

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
        load = await in_database(loads.begin_load, checkpoint, server=self.start)
        try:
            load = await self._prove(load)
        except InvalidInput as error:
            load = await in_database(loads.fail_load, load, str(error))
        except (ServerLost, asyncio.CancelledError):
            await in_database(loads.lose_load, load)
            raise
        if load.status != HotLoad.Status.READY:
            await self._unload(load)
            raise LoadFailed(load.error)
        return load

    async def _prove(self, load: HotLoad) -> HotLoad:
        checkpoint = load.checkpoint
        if checkpoint.deleted_at is not None:
            raise InvalidInput(f"The checkpoint {checkpoint.name} was deleted.")
        folder, digest = await asyncio.to_thread(self._open, load)
        if digest != checkpoint.digest:
            raise InvalidInput(
                f"The files of {checkpoint.name} have the digest {digest[:12]}, and "
                f"{checkpoint.digest[:12]} was saved: they were changed on disk."
            )
        base = await in_database(name_base, checkpoint)
        began = time.perf_counter()
        if checkpoint.is_full:
            await self.server.load_model(load.adapter_name, folder)
        else:
            await self.server.load_adapter(load.adapter_name, folder, base=base)
        loaded = time.perf_counter()
        logprobs = await self._probe(load.adapter_name, checkpoint)
        proof = loads.Proof(
            digest=digest,
            load_milliseconds=1000 * (loaded - began),
            probe_milliseconds=1000 * (time.perf_counter() - loaded),
            server_logprobs=logprobs,
            max_difference=measure_difference(checkpoint.probe["logprobs"], logprobs),
            tolerance=settings.PROBE_TOLERANCE,
        )
        return await in_database(loads.prove_load, load, proof)

    def _open(self, load: HotLoad) -> tuple[Path, str]:
        """The folder to load, and the digest of what was found in it."""
        folder = settings.HONE_HOME / load.checkpoint.path
        if load.checkpoint.is_full:
            return open_model(folder, self.restored / load.adapter_name)
        return folder, digest_adapter(folder / ADAPTER_FILE)

    async def _probe(self, adapter_name: str, checkpoint: Checkpoint) -> list[float]:
        """The probe's log-probabilities through the path that answers everybody."""
        tokens = checkpoint.probe.get("tokens")
        if not tokens:
            raise InvalidInput(
                f"{checkpoint.name} was saved without a probe, so nothing can prove that it is "
                "what the server holds."
            )
        request = SampleRequest(
            prompt=tokens,
            params=SamplingParams(max_tokens=1, temperature=0.0),
            prompt_logprobs=True,
        )
        output = await self.server.generate(adapter_name, request)
        found = list(output.prompt_logprobs or ())[1:]
        logprobs = [value for value in found if value is not None and math.isfinite(value)]
        if len(logprobs) != len(tokens) - 1:
            raise InvalidInput("The server gave no finite log-probabilities for the probe.")
        return logprobs

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
        limit = MAX_WHOLE if is_full else MAX_LOADED
        idle = sorted(
            (key for key in served if not self.loaded[key].num_users),
            key=lambda key: self.loaded[key].used_at,
        )
        for key in idle[: max(0, len(served) - limit + 1)]:
            load = self.loaded.pop(key).task.result()
            await in_database(loads.lose_load, load)
            await self._unload(load)

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


def name_base(checkpoint: Checkpoint) -> str:
    return checkpoint.base_model.name


def measure_difference(trainer: list[float], server: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(trainer, server, strict=True))


def digest_adapter(file: Path) -> str:
    """What training.engine.checkpoint.digest_tensors says of the file's tensors, without torch."""
    digest = sha256()
    try:
        with file.open("rb") as stream:
            start = 8 + int.from_bytes(stream.read(8), "little")
            header: Mapping[str, Any] = json.loads(stream.read(start - 8))
            for name in sorted(header.keys() - {"__metadata__"}):
                tensor = header[name]
                shape = tuple(tensor["shape"])
                digest.update(f"{name} torch.{DTYPES[tensor['dtype']]} {shape}\n".encode())
                begin, end = tensor["data_offsets"]
                stream.seek(start + begin)
                for left in range(end - begin, 0, -HASHED_BYTES):
                    digest.update(stream.read(min(left, HASHED_BYTES)))
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"{file.parent.name} cannot be read: {error}") from error
    return digest.hexdigest()
