"""The sampler process: turn after turn, until it is told to stop."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from django.conf import settings
from redis.asyncio import Redis
from redis.exceptions import RedisError

from webapp.deployments.calls import KICK
from webapp.fleet.models import Worker
from webapp.fleet.services import register_worker, remove_worker
from workers.hotload import in_database
from workers.sampler import Sampler
from workers.vllm import SamplingServer

POLL_SECONDS = 1.0  # where a kick was lost
REST_SECONDS = 0.1  # a deployment's change is seen so late at most
BREATH_SECONDS = 0.003  # calls that come together are claimed together
BEAT_SECONDS = 5.0
RECONNECT_SECONDS = 1.0


@dataclass(slots=True, eq=False, kw_only=True)
class Shift:
    """One sampler process from its start to its end."""

    worker: str
    connect: Callable[[str], SamplingServer] = SamplingServer
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: bool = False

    def end(self) -> None:
        self.is_over = True
        self.woken.set()

    async def work(self) -> None:
        await in_database(register, self.worker)
        sampler = Sampler(
            worker=self.worker, connect=self.connect, woken=self.woken, rest_seconds=REST_SECONDS
        )
        await sampler.begin()
        kicks = asyncio.create_task(self.listen(sampler))
        beats = asyncio.create_task(self.beat(sampler))
        try:
            while not (self.is_over or beats.done()):
                was_rested = sampler.is_rested
                if not await sampler.run_once():
                    await self.pause(POLL_SECONDS if was_rested else REST_SECONDS)
        finally:
            kicks.cancel()
            beats.cancel()
            await sampler.stop()
            await in_database(remove_worker, name=self.worker, pid=os.getpid())
        if beats.done() and not beats.cancelled():
            beats.result()  # what ended it ends the process, which is started again

    async def beat(self, sampler: Sampler) -> None:
        while True:
            await sampler.beat()
            await asyncio.sleep(BEAT_SECONDS)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(BREATH_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.woken.wait()
        self.woken.clear()

    async def listen(self, sampler: Sampler) -> None:
        while True:
            with suppress(RedisError, OSError):
                await self.hear_kicks(sampler)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def hear_kicks(self, sampler: Sampler) -> None:
        redis = Redis.from_url(settings.REDIS_URL)
        async with redis, redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe(KICK)
            async for kick in pubsub.listen():
                sampler.drop(kick["data"].decode())
                self.woken.set()


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
    shift = Shift(worker=worker)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, shift.end)
    await shift.work()
