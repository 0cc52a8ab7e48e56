"""The sampler process: one server after another, until it is told to stop."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from django.conf import settings
from redis.asyncio import Redis
from redis.exceptions import RedisError

from webapp.deployments.calls import KICK
from webapp.fleet.models import BaseModel, Worker
from webapp.fleet.services import beat_worker, register_worker, remove_worker
from workers.hotload import HotLoads, in_database
from workers.processes import find_free_port
from workers.sampler import Sampler, lose_everything
from workers.vllm import SamplingServer
from workers.vllm_process import build_command, supervise

POLL_SECONDS = 1.0  # where a kick was lost
BEAT_SECONDS = 5.0
RECONNECT_SECONDS = 1.0

Models = Mapping[str, Path]


class Running(Protocol):
    """A server and which start of it answers now; None: none does."""

    server: SamplingServer
    incarnation: str | None


@dataclass(slots=True, kw_only=True)
class External:
    """A server that somebody else starts: adapters it forgot are seen when it is asked for them."""

    server: SamplingServer
    incarnation: str | None = field(default_factory=lambda: uuid4().hex)


@dataclass(slots=True, eq=False, kw_only=True)
class Shifts:
    """Each shift is the work of one start of a server; a new set of models needs a new one."""

    worker: str
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    losses: Counter[int] = field(default_factory=Counter)
    is_over: bool = False

    def end(self) -> None:
        self.is_over = True
        self.woken.set()

    async def work(self) -> None:
        await in_database(register, self.worker)
        kicks = asyncio.create_task(self.listen())
        try:
            while not self.is_over:
                models = await in_database(list_models)
                if models:
                    async with open_server(models) as running:
                        await self.serve(running, models)
                else:
                    await self.idle()
        finally:
            kicks.cancel()
            await in_database(lose_everything, self.worker)
            await in_database(remove_worker, name=self.worker, pid=os.getpid())

    async def serve(self, running: Running, models: Models) -> None:
        """As long as these are the models that are offered."""
        while not self.is_over and models == await in_database(list_models):
            if running.incarnation is None:
                await self.idle()
            else:
                await self.take_shift(running, models)

    async def idle(self) -> None:
        await in_database(beat_worker, name=self.worker, holds={"server": None})
        await self.pause()

    async def take_shift(self, running: Running, models: Models) -> None:
        incarnation = running.incarnation
        sampler = Sampler(
            worker=self.worker,
            server=running.server,
            loads=HotLoads(running.server, f"{self.worker}/{incarnation}"),
            models=models,
            woken=self.woken,
            losses=self.losses,
        )
        await sampler.begin()
        beats = asyncio.create_task(self.beat(sampler, models))
        try:
            while not self.is_over and running.incarnation == incarnation and not beats.done():
                is_more = await sampler.run_once()
                if sampler.is_outdated:
                    return
                if not is_more:
                    await self.pause()
        finally:
            beats.cancel()
            await sampler.stop()

    async def beat(self, sampler: Sampler, models: Models) -> None:
        """Until other models are offered."""
        while models == await in_database(list_models):
            await sampler.beat()
            await asyncio.sleep(BEAT_SECONDS)
        self.woken.set()

    async def pause(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.woken.wait(), POLL_SECONDS)
        self.woken.clear()

    async def listen(self) -> None:
        while True:
            with suppress(RedisError, OSError):
                await self.hear_kicks()
            await asyncio.sleep(RECONNECT_SECONDS)

    async def hear_kicks(self) -> None:
        redis = Redis.from_url(settings.REDIS_URL)
        async with redis, redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe(KICK)
            async for _ in pubsub.listen():
                self.woken.set()


@asynccontextmanager
async def open_server(models: Models) -> AsyncIterator[Running]:
    if settings.SAMPLING_SERVER_URL:
        async with SamplingServer(settings.SAMPLING_SERVER_URL) as server:
            yield External(server=server)
        return
    port = find_free_port()
    url = f"http://127.0.0.1:{port}"
    command = build_command(models, port=port, max_models=settings.SAMPLING_MODELS)
    async with supervise(command, url=url) as supervised:
        yield supervised


def list_models() -> dict[str, Path]:
    models = BaseModel.objects.prefetch_related("names")
    return {model.name: Path(model.path) for model in models}


def register(worker: str) -> None:
    register_worker(
        name=worker,
        kind=Worker.Kind.SAMPLER,
        device=settings.SAMPLING_SERVER_URL or f"{os.cpu_count()} CPU cores",
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        flops=0,
        pid=os.getpid(),
    )


async def run_until_told(worker: str) -> None:
    shifts = Shifts(worker=worker)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, shifts.end)
    await shifts.work()
