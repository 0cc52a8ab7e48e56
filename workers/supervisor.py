"""The serving process: keeps the servers running that are wanted, and says in rows how they are."""

import asyncio
import fcntl
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from django.conf import settings
from django.db import DatabaseError

from webapp.deployments import replicas
from webapp.deployments.models import Replica
from webapp.deployments.wanted import Wanted, list_wanted
from workers.hotload import in_database
from workers.servers import CannotStart, Launched, launch
from workers.vllm import SamplingServer

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # between two looks at what is wanted
CHECK_SECONDS = 2.0  # between two looks at one server
KNOCK_SECONDS = 0.1  # while it starts
START_SECONDS = 1800.0  # a large model is read for many minutes
HUNG_SECONDS = 30.0  # without an answer
WELL_SECONDS = 30.0  # a server that ran this long had started well: the next wait is short again
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 60.0
LEFT_SECONDS = 20.0
AGAIN_SECONDS = 1.0  # before a database that was away is asked again

T = TypeVar("T")
Launch = Callable[[Wanted], Awaitable[Launched]]
Connect = Callable[[str], SamplingServer]


class AlreadyServed(Exception):  # noqa: N818 - reads as the sentence it begins
    """Another process keeps this installation's servers."""


async def in_rows(work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """A database that is away for a moment ends no server."""
    while True:
        try:
            return await in_database(work, *args, **kwargs)
        except DatabaseError as error:
            logger.warning("the database did not answer: %s", error)
            await asyncio.sleep(AGAIN_SECONDS)


@dataclass(slots=True, eq=False, kw_only=True)
class Keeper:
    """Keeps one server running: start after start, later each time it fails early."""

    wanted: Wanted
    launch: Launch
    connect: Connect

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
            launched = await self.launch(self.wanted)
        except (CannotStart, OSError) as error:
            await self.begin(start, self.wanted.url, None)
            return await self.lose(start, str(error))
        try:
            await self.begin(start, launched.url, launched.pid)
            return await self.lose(start, await self.see_end(launched, start))
        finally:
            await launched.end()

    async def begin(self, start: str, url: str, pid: int | None) -> None:
        await in_rows(replicas.begin_start, self.wanted, start=start, url=url, pid=pid)

    async def lose(self, start: str, error: str) -> str:
        """Said first, ended then: whoever waits for a server that hangs waits no longer."""
        await in_rows(replicas.mark_lost, self.wanted.name, start=start, error=error)
        return error

    async def see_end(self, launched: Launched, start: str) -> str:
        async with self.connect(launched.url) as server:
            both = [
                asyncio.create_task(launched.wait()),
                asyncio.create_task(self.watch(server, start)),
            ]
            try:
                done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                return next(each for each in both if each in done).result()
            finally:
                for each in both:
                    each.cancel()

    async def watch(self, server: SamplingServer, start: str) -> str:
        """Until it does not answer any more."""
        deadline = time.monotonic() + START_SECONDS
        while not await server.health():
            if time.monotonic() > deadline and not self.wanted.url:
                return f"The server did not answer within {START_SECONDS:.0f} s of its start."
            await asyncio.sleep(KNOCK_SECONDS)
        await in_rows(replicas.mark_ready, self.wanted.name, start=start)
        answered_at = time.monotonic()
        while time.monotonic() - answered_at < HUNG_SECONDS:
            await asyncio.sleep(CHECK_SECONDS)
            if await server.health():
                answered_at = time.monotonic()
        return f"The server gave no answer for {HUNG_SECONDS:.0f} s."


@dataclass(slots=True, eq=False, kw_only=True)
class Supervisor:
    """Everything that must last is in rows; the servers end with it, and start with the next."""

    launch: Launch = launch
    connect: Connect = SamplingServer
    kept: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    ending: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    told: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self) -> None:
        self.told.set()

    async def work(self) -> None:
        await end_left()
        try:
            while not self.told.is_set():
                await self.look()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.told.wait(), LOOK_SECONDS)
        finally:
            for name in list(self.kept):
                self.stop(name)
            await asyncio.gather(*self.ending.values())

    async def look(self) -> None:
        """Begin what is wanted, and end what is not."""
        for name in [name for name, task in self.kept.items() if task.done()]:
            logger.error("%s is kept anew", name, exc_info=self.kept.pop(name).exception())
        wanted = {each.name: each for each in await in_rows(list_wanted)}
        for name in self.kept.keys() - wanted.keys():
            self.stop(name)
        for name in wanted.keys() - self.kept.keys() - self.ending.keys():
            keeper = Keeper(wanted=wanted[name], launch=self.launch, connect=self.connect)
            self.kept[name] = asyncio.create_task(keeper.keep())

    def stop(self, name: str) -> None:
        self.ending[name] = asyncio.create_task(self.see_out(name, self.kept.pop(name)))

    async def see_out(self, name: str, kept: asyncio.Task[None]) -> None:
        await in_rows(replicas.mark_stopping, name)
        kept.cancel()
        await asyncio.wait([kept])
        await in_rows(replicas.mark_stopped, name)
        del self.ending[name]


async def end_left() -> None:
    """Servers end with their supervisor; what one that was killed has left is ended here."""
    left = await in_rows(replicas.end_starts, error="The serving process has started again.")
    for replica in left:
        if replica.pid is not None and is_server(replica):
            with suppress(ProcessLookupError):
                os.killpg(replica.pid, signal.SIGKILL)
    async with asyncio.timeout(LEFT_SECONDS):
        while any(is_server(replica) for replica in left):
            await asyncio.sleep(KNOCK_SECONDS)


def is_server(replica: Replica) -> bool:
    """A process of this number may be another one by now."""
    try:
        return b"workers.watched" in Path(f"/proc/{replica.pid}/cmdline").read_bytes()
    except OSError:
        return False


@contextmanager
def lock_serving() -> Iterator[None]:
    """One supervisor an installation: it goes with the process, however that ends."""
    with (Path(settings.HONE_HOME) / "serving.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyServed(
                f"Another process keeps the sampling servers of {settings.HONE_HOME}."
            ) from None
        yield


async def supervise_until_told() -> None:
    supervisor = Supervisor()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.end)
    await supervisor.work()
