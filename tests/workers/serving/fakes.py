"""Sampling servers as a test plays them: they start, answer, hang and die when it says so."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from webapp.deployments.wanted import Wanted
from workers.preparation import CannotStart
from workers.vllm import SamplingServer

Answer = Callable[[httpx.Request], httpx.Response]


@dataclass(slots=True, eq=False, kw_only=True)
class Machine:
    """One start of one server."""

    url: str
    place: int
    pid: int | None = None
    is_up: bool = True  # it answers; where it does not, it is not gone
    is_stuck: bool = False  # it says that it is well, and does nothing
    is_ended: bool = False  # by its supervisor
    died: asyncio.Future[str] = field(default_factory=asyncio.Future)

    async def wait(self) -> str:
        return await self.died

    async def end(self) -> None:
        self.is_ended = True

    def die(self, error: str = "The server ended with code 1.") -> None:
        self.died.set_result(error)

    @property
    def answers(self) -> bool:
        return self.is_up and not self.is_ended and not self.died.done()


@dataclass(slots=True, eq=False, kw_only=True)
class Machines:
    """All that a supervisor has started, by name, in order."""

    started: dict[str, list[Machine]] = field(default_factory=dict)
    refused: str = ""  # why nothing starts
    is_slow: bool = False  # what starts does not answer yet
    by_url: dict[str, Machine] = field(default_factory=dict)
    told: Answer = lambda _: httpx.Response(404)

    async def launch(self, wanted: Wanted, place: int) -> Machine:
        if self.refused:
            raise CannotStart(self.refused)
        starts = self.started.setdefault(wanted.name, [])
        url = wanted.url or f"http://{wanted.name}.{len(starts) + 1}"
        machine = Machine(url=url, place=place, is_up=not self.is_slow)
        starts.append(machine)
        self.by_url[url] = machine
        return machine

    def connect(self, url: str) -> SamplingServer:
        async def answer(request: httpx.Request) -> httpx.Response:
            if not self.by_url[url].answers:
                raise httpx.ConnectError("nobody there")
            if request.url.path == "/health":
                return httpx.Response(200)
            if self.by_url[url].is_stuck:
                await asyncio.Future()
            return self.told(request)

        return SamplingServer(url, transport=httpx.MockTransport(answer))

    def last(self, name: str) -> Machine:
        return self.started[name][-1]


def describe(**said: Any) -> Answer:
    return lambda _: httpx.Response(200, json=said)
