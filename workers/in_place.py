"""Weights in the place of a server's one model: proven before anybody is answered by them."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from django.conf import settings

from training.errors import InvalidInput
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import loads
from webapp.deployments.models import DeploymentChange, HotLoad, Replica
from workers.hotload import (
    RETRY_SECONDS,
    LoadFailed,
    WeightsMoved,
    in_database,
    open_checkpoint,
    read_base,
)
from workers.proof import probe
from workers.vllm import ModelMissing, PauseMode, SamplingServer, ServerLost
from workers.whole_folders import find_restored, remove_restored

T = TypeVar("T")
Status = HotLoad.Status
Transition = DeploymentChange.Transition


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A checkpoint's weights as a folder that was looked through."""

    load: HotLoad
    folder: Path
    digest: str
    milliseconds: float


class InPlaceLoads:
    """What one start of one server holds: one whole model at a time.

    Answers that were under way while weights were exchanged are given when the new ones are proven;
    where those do not agree, the old ones are there again and are asked once more.
    """

    is_in_place = True

    def __init__(
        self, server: SamplingServer, start: str, *, replica: Replica | None = None
    ) -> None:
        self.server = server
        self.start = start  # as HotLoad.server says it
        self.replica = replica
        self.restored = find_restored(start.partition("/")[0])
        self.load: HotLoad | None = None  # None: nothing that is proven
        self.model = ""  # what the server calls its one model
        self.turn = asyncio.Lock()  # of one exchange at a time
        self.opened: dict[str, Opened] = {}
        self.failed: dict[str, tuple[float, str]] = {}
        self.is_exchanging = False
        self.num_refused = 0

    async def adopt(self) -> None:
        """What a sampler before us has proven here, if the server says that it still holds it."""
        served = await in_database(loads.list_served, server=self.start)
        try:
            facts = await self.server.describe()
        except ServerLost:
            return
        for load in served:
            if load.digest == facts.digest:
                self.load = load
                self.model, _ = await in_database(read_base, load.checkpoint)
            else:
                await in_database(loads.lose_load, load)

    async def use(
        self, checkpoint: Checkpoint, work: Callable[[HotLoad], Awaitable[T]]
    ) -> tuple[HotLoad, T]:
        """Do it with the proven weights. WeightsMoved: they are others than were asked for."""
        if self.load is None:
            async with self.turn:
                if self.load is None:
                    self._check_failed(checkpoint)
                    await self._exchange(await self._open(checkpoint), "keep")
        load, num_refused = self.load, self.num_refused
        if load is None or load.checkpoint_id != checkpoint.pk:
            raise WeightsMoved(f"the server does not hold {checkpoint.name} now")
        result = await work(load)
        if self.is_exchanging:  # what answered the end of it is not proven yet
            async with self.turn:
                pass
        if self.num_refused != num_refused or self.load is None:
            raise WeightsMoved("the weights that answered did not agree with the trainer's")
        return self.load, result

    def _check_failed(self, checkpoint: Checkpoint) -> None:
        failed_at, error = self.failed.get(checkpoint.pk, (0.0, ""))
        if error and time.monotonic() - failed_at < RETRY_SECONDS:
            raise LoadFailed(error)

    async def prepare(self, change: DeploymentChange) -> None:
        """All that can be done before anybody waits: the files, compared and restored."""
        assert change.checkpoint is not None
        async with self.turn:
            if not self._holds(change.checkpoint) and change.checkpoint.pk not in self.opened:
                self.opened[change.checkpoint.pk] = await self._open(change.checkpoint)

    async def serve(self, change: DeploymentChange) -> HotLoad | None:
        assert change.checkpoint is not None
        mode: PauseMode = "wait" if change.transition == Transition.SYNC else "keep"
        async with self.turn:
            if self._holds(change.checkpoint):
                return self.load
            opened = self.opened.pop(change.checkpoint.pk, None)
            return await self._exchange(opened or await self._open(change.checkpoint), mode)

    async def take_back(self, change: DeploymentChange) -> None:
        """Another server did not agree, or a newer change came first: what was served is again."""
        async with self.turn:
            if change.checkpoint is None or not self._holds(change.checkpoint):
                return
            self.num_refused += 1
            await self._let_go()
            if change.previous is not None and change.previous.is_full:
                with suppress(LoadFailed):  # the next call asks for it, and hears why
                    await self._exchange(await self._open(change.previous), "keep")

    def _holds(self, checkpoint: Checkpoint) -> bool:
        return self.load is not None and self.load.checkpoint_id == checkpoint.pk

    async def _open(self, checkpoint: Checkpoint) -> Opened:
        load = await in_database(
            loads.begin_load, checkpoint, server=self.start, replica=self.replica
        )
        self.model, base = await in_database(read_base, checkpoint)
        began = time.perf_counter()
        before, target = self._find_before(checkpoint), self.restored / load.adapter_name
        try:
            folder, digest = await asyncio.to_thread(
                open_checkpoint, checkpoint, base, target, before
            )
        except InvalidInput as error:
            raise await self._refuse(load, str(error)) from error
        milliseconds = 1000 * (time.perf_counter() - began)
        return Opened(load=load, folder=folder, digest=digest, milliseconds=milliseconds)

    def _find_before(self, checkpoint: Checkpoint) -> Path | None:
        """Where the weights that a delta differs from lie restored: one delta is enough then."""
        if self.load is None or self.load.checkpoint_id != checkpoint.previous_id:
            return None
        folder = self.restored / self.load.adapter_name
        return folder if folder.is_dir() else None

    async def _exchange(self, opened: Opened, mode: PauseMode) -> HotLoad:
        """The new weights, proven; or LoadFailed, and the old ones are there as before."""
        load, before = opened.load, self.load
        try:
            await self.server.prepare_weights(opened.folder, opened.digest)
            self.is_exchanging, self.load = True, None
            load = await self._put_in_place(opened, mode)
        except InvalidInput as error:
            if not self.is_exchanging:  # nothing was touched
                raise await self._refuse(load, str(error)) from error
            refusal = await self._refuse(load, str(error))
            await self._go_back(before)
            raise refusal from error
        except (ServerLost, ModelMissing) as error:
            raise ServerLost(f"the sampling server was lost during a load: {error}") from error
        finally:
            self.is_exchanging = False
            if load.status == Status.LOADING:
                await in_database(loads.lose_load, load)
        if load.status == Status.LOST:
            raise ServerLost("the sampling server ended during a load")
        if load.status != Status.READY:
            refusal = await self._refuse(load, load.error)
            await self._go_back(before)
            raise refusal
        self.load = load
        if before is not None:
            await self._forget(before)
        return load

    async def _put_in_place(self, opened: Opened, mode: PauseMode) -> HotLoad:
        began = time.perf_counter()
        pause = await self.server.replace_weights(
            opened.folder,
            digest=opened.digest,
            version=opened.load.adapter_name,
            mode=mode,
            is_prepared=True,
        )
        given = time.perf_counter()
        logprobs = await probe(self.server, self.model, opened.load.checkpoint)
        proof = loads.Proof(
            digest=opened.digest,
            transfer_milliseconds=opened.milliseconds,
            load_milliseconds=1000 * (given - began),
            probe_milliseconds=1000 * (time.perf_counter() - given),
            pause_milliseconds=pause,
            server_logprobs=logprobs,
            tolerance=settings.PROBE_TOLERANCE,
        )
        return await in_database(loads.prove_load, opened.load, proof)

    async def _go_back(self, before: HotLoad | None) -> None:
        """To the weights that answered. What was answered since is asked once more."""
        self.num_refused += 1
        if before is None:
            return
        try:
            folder = self._find_folder(before)
            await self.server.replace_weights(
                folder, digest=before.digest, version=before.adapter_name, mode="keep"
            )
            logprobs = await probe(self.server, self.model, before.checkpoint)
        except InvalidInput:
            await self._forget(before)
            return
        differences = loads.measure_differences(before.checkpoint.probe["logprobs"], logprobs)
        if max(differences) <= settings.PROBE_TOLERANCE:
            self.load = before
        else:
            await self._forget(before)

    def _find_folder(self, load: HotLoad) -> Path:
        if load.checkpoint.is_delta:
            return self.restored / load.adapter_name
        return Path(settings.HONE_HOME) / load.checkpoint.path

    async def _refuse(self, load: HotLoad, error: str) -> LoadFailed:
        if load.status == Status.LOADING:
            load = await in_database(loads.fail_load, load, error)
        self.failed[load.checkpoint_id] = (time.monotonic(), load.error)
        await asyncio.to_thread(remove_restored, self.restored / load.adapter_name)
        return LoadFailed(load.error)

    async def _let_go(self) -> None:
        before, self.load = self.load, None
        if before is not None:
            await self._forget(before)

    async def _forget(self, load: HotLoad) -> None:
        await in_database(loads.lose_load, load)
        await asyncio.to_thread(remove_restored, self.restored / load.adapter_name)

    def name_model(self, _: HotLoad) -> str:
        """What the server knows it by: its one model, whatever weights that has."""
        return self.model

    async def close(self) -> None:
        """The server keeps what is proven; the next sampler finds it in rows."""

    @property
    def names(self) -> list[str]:
        return [self.load.adapter_name] if self.load else []
