"""The serving process: keeps the servers running that are wanted, and says in rows how they are."""

import asyncio
import fcntl
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from django.conf import settings

from webapp.deployments import replicas
from webapp.deployments.models import Replica
from webapp.deployments.wanted import Wanted, list_wanted
from workers.keeper import Connect, Keeper, Launch, in_rows
from workers.servers import launch
from workers.vllm import SamplingServer

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # between two looks at what is wanted
LEFT_SECONDS = 20.0
KNOCK_SECONDS = 0.1


class AlreadyServed(Exception):  # noqa: N818 - reads as the sentence it begins
    """Another process keeps this installation's servers."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Kept:
    keeper: Keeper
    task: asyncio.Task[None]


@dataclass(slots=True, eq=False, kw_only=True)
class Supervisor:
    """Everything that must last is in rows; the servers end with it, and start with the next."""

    launch: Launch = launch
    connect: Connect = SamplingServer
    kept: dict[str, Kept] = field(default_factory=dict)
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
        wanted = {each.name: each for each in await in_rows(list_wanted)}
        for name, kept in list(self.kept.items()):
            if kept.task.done():
                logger.error("%s is kept anew", name, exc_info=kept.task.exception())
                del self.kept[name]
            elif name not in wanted or not wanted[name].fits(kept.keeper.wanted):
                self.stop(name)
        for name in sorted(wanted.keys() - self.kept.keys() - self.ending.keys()):
            self.begin(wanted[name])

    def begin(self, wanted: Wanted) -> None:
        taken = {each.keeper.place for each in self.kept.values()}
        place = next(each for each in count() if each not in taken)
        keeper = Keeper(wanted=wanted, launch=self.launch, connect=self.connect, place=place)
        task = asyncio.create_task(keeper.keep())
        self.kept[wanted.name] = Kept(keeper=keeper, task=task)

    def stop(self, name: str) -> None:
        self.ending[name] = asyncio.create_task(self.see_out(name, self.kept.pop(name)))

    async def see_out(self, name: str, kept: Kept) -> None:
        is_ready = await in_rows(replicas.mark_stopping, name)
        if is_ready and not self.told.is_set():
            await kept.keeper.drain()
        kept.task.cancel()
        await asyncio.wait([kept.task])
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
