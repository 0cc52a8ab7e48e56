"""Keeps one sampling server running, watches it, and writes down in its row how it is."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from django.db import InterfaceError, OperationalError

from training.errors import InvalidInput
from webapp.deployments import replicas
from webapp.deployments.models import Replica
from webapp.deployments.wanted import Wanted
from workers.hotload import in_database
from workers.preparation import CannotStart
from workers.servers import Launched
from workers.vllm import ModelMissing, SamplingServer, ServerFacts, ServerLost
from workers.vllm_stats import ServerStats

logger = logging.getLogger(__name__)

KNOCK_SECONDS = 0.1  # while it starts
START_SECONDS = 1800.0  # a large model is read for many minutes
CHECK_SECONDS = 2.0
HUNG_SECONDS = 30.0  # without any answer
WORK_SECONDS = 5.0  # between two looks at what computes
STUCK_SECONDS = 60.0  # a step of a long prompt takes seconds; one that takes this long never ends
READING_SECONDS = 600.0  # the built-in server does nothing else while it reads a large model
STATS_SECONDS = 5.0
DRAIN_SECONDS = 10.0  # for what a server that is not wanted any more is at
WELL_SECONDS = 30.0  # a server that ran this long had started well: the next wait is short again
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 60.0
AGAIN_SECONDS = 1.0  # before a database that was away is asked again

T = TypeVar("T")
Launch = Callable[[Wanted, int], Awaitable[Launched]]
Connect = Callable[[str], SamplingServer]


async def in_rows(work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """A database that is away for a moment ends no server."""
    while True:
        try:
            return await in_database(work, *args, **kwargs)
        except (InterfaceError, OperationalError) as error:
            logger.warning("the database did not answer: %s", error)
            await asyncio.sleep(AGAIN_SECONDS)


@dataclass(slots=True, eq=False, kw_only=True)
class Keeper:
    """Keeps one server running: start after start, later each time it fails early."""

    wanted: Wanted
    launch: Launch
    connect: Connect
    place: int = 0  # among the servers that run
    url: str = ""  # of the start that runs

    async def keep(self) -> None:
        """Until cancelled."""
        wait = FIRST_WAIT_SECONDS
        while True:
            began, start = time.monotonic(), uuid4().hex[:12]
            error = await self.run_once(start)
            ran_well = time.monotonic() - began > WELL_SECONDS
            wait = FIRST_WAIT_SECONDS if ran_well else min(2 * wait, LONGEST_WAIT_SECONDS)
            logger.warning("%s: %s Again in %.1f s.", self.wanted.name, error, wait)
            await asyncio.sleep(wait)

    async def run_once(self, start: str) -> str:
        """One start of the server, to its end: why, in a sentence."""
        try:
            launched = await self.launch(self.wanted, self.place)
        except (CannotStart, OSError) as error:
            await self.begin(start, self.wanted.url, None)
            return await self.lose(start, str(error))
        try:
            self.url = launched.url
            await self.begin(start, launched.url, launched.pid)
            return await self.lose(start, await self.see_end(launched, start))
        finally:
            await launched.end()

    async def drain(self) -> None:
        """Give it time to end what it is at. What it does not end is answered by another one."""
        async with self.connect(self.url) as server:
            with suppress(ServerLost, InvalidInput, ModelMissing, ValueError, TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):  # one that hangs says nothing at all
                    while (await server.read_stats()).running:
                        await asyncio.sleep(KNOCK_SECONDS)

    async def begin(self, start: str, url: str, pid: int | None) -> None:
        await in_rows(replicas.begin_start, self.wanted, start=start, url=url, pid=pid)

    async def lose(self, start: str, error: str) -> str:
        """Said first, ended then: whoever waits for a server that hangs waits no longer."""
        await in_rows(replicas.mark_lost, self.wanted.name, start=start, error=error)
        return error

    async def see_end(self, launched: Launched, start: str) -> str:
        async with self.connect(launched.url) as server:
            return await finish_first(
                [
                    asyncio.create_task(launched.wait()),
                    asyncio.create_task(self.watch(server, start)),
                ]
            )

    async def watch(self, server: SamplingServer, start: str) -> str:
        """Until it does not answer any more."""
        deadline = time.monotonic() + START_SECONDS
        while not await server.health():
            if time.monotonic() > deadline and not self.wanted.url:
                return f"The server did not answer within {START_SECONDS:.0f} s of its start."
            await asyncio.sleep(KNOCK_SECONDS)
        facts = await describe(server)
        ready = {"start": start, "version": facts.version, "warning": facts.warning}
        await in_rows(replicas.mark_ready, self.wanted.name, **ready)
        watches = [
            asyncio.create_task(self.watch_health(server)),
            asyncio.create_task(self.watch_work(server)),
            asyncio.create_task(self.read_stats(server, start)),
        ]
        return await finish_first(watches)

    async def watch_health(self, server: SamplingServer) -> str:
        answered_at = time.monotonic()
        while time.monotonic() - answered_at < HUNG_SECONDS:
            await asyncio.sleep(CHECK_SECONDS)
            if await server.health():
                answered_at = time.monotonic()
        return f"The server gave no answer for {HUNG_SECONDS:.0f} s."

    async def watch_work(self, server: SamplingServer) -> str:
        """What computes may hang behind a server that says it is well."""
        is_ours = self.wanted.engine == Replica.Engine.BUILT_IN
        seconds = READING_SECONDS if is_ours else STUCK_SECONDS
        asked_at = time.monotonic()
        while await server.is_working(seconds) or time.monotonic() - asked_at < seconds:
            await asyncio.sleep(WORK_SECONDS)  # where nobody answers at all, others watch
            asked_at = time.monotonic()
        return f"The server computed nothing for {seconds:.0f} s."

    async def read_stats(self, server: SamplingServer, start: str) -> str:
        before, name = Reading(), self.wanted.name
        while True:
            await asyncio.sleep(STATS_SECONDS)
            with suppress(ServerLost, InvalidInput, ValueError):
                now = Reading(stats=await server.read_stats(), at=time.monotonic())
                if now.stats != ServerStats():  # the built-in server keeps none
                    said = now.describe(before)
                    await in_rows(replicas.note_stats, name, start=start, stats=said)
                before = now


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a server said of itself, and when."""

    stats: ServerStats | None = None
    at: float = 0.0

    def describe(self, before: "Reading") -> dict[str, Any]:
        """With how many tokens a second it has made since."""
        assert self.stats is not None
        said = self.stats.describe()
        if before.stats is not None and self.at > before.at:
            for kind in ("prompt_tokens", "sampled_tokens"):
                made = getattr(self.stats, kind) - getattr(before.stats, kind)
                said[f"{kind}_per_second"] = max(0.0, made / (self.at - before.at))
        return said


async def describe(server: SamplingServer) -> ServerFacts:
    """One that does not say what it is is taken as it is: every load is proven anyway."""
    try:
        return await server.describe()
    except (ServerLost, ModelMissing, InvalidInput, ValueError, KeyError):
        return ServerFacts(engine="vllm")


async def finish_first(tasks: Sequence[asyncio.Task[str]]) -> str:
    """What the first one says; the others are no longer needed."""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(each for each in tasks if each in done).result()
    finally:
        for each in tasks:
            each.cancel()
