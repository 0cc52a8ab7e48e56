"""A whole way from a client's request to the tiny model and back, in this process."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from asgiref.sync import sync_to_async
from django.db import connections
from pytest_django import Settings
from redis import BusyLoadingError, ConnectionError, Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from tests.webapp.cast import make_actor
from tests.workers.serving.conftest import (
    MODEL,
    TINY,
    WORKER,
    base_model,
    checkpoint,
    open_sampler,
    run,
    save,
    saved,
    turns,
)
from webapp.accounts.credentials import forget_actors
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.core import subscription
from webapp.core.threads import Scope
from webapp.deployments.streams import NUM_THREADS, Streams
from webapp.openai.door import InferenceDoor
from workers.generation import App
from workers.management.commands.up import Command
from workers.processes import Crew, find_free_port
from workers.residents import TurnThread
from workers.sampler import Sampler
from workers.shifts import Shift

__all__ = ["MODEL", "TINY", "base_model", "checkpoint", "run", "save", "saved"]
__all__ += ["turns"]

PATIENCE = Retry(ConstantBackoff(0.05), 1200, (ConnectionError, BusyLoadingError))
SWEEP_SECONDS = 0.2  # so short that a hint which came before the subscription costs no test time
JSON = "application/json"


@dataclass(slots=True, kw_only=True)
class Told:
    """One answer. `events` are those of a stream, without its last word."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.status == 200, self.body
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error

    @property
    def events(self) -> list[dict[str, Any]]:
        assert self.status == 200, self.body
        lines = [line for line in self.body.decode().split("\n") if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@dataclass(slots=True, kw_only=True)
class Exchange:
    """A request as an ASGI server would bring it, whose client may read and leave as it likes."""

    door: InferenceDoor
    scope: Scope
    body: bytes
    sent: list[dict[str, Any]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    has_read: bool = False
    slowness: float = 0  # seconds that the client takes for each event

    async def receive(self) -> dict[str, Any]:
        if not self.has_read:
            self.has_read = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, event: Any) -> None:
        self.sent.append(event)
        self.arrived.set()
        await asyncio.sleep(self.slowness)

    async def run(self) -> Told:
        await self.door(self.scope, self.receive, self.send)
        start, *rest = self.sent
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        body = b"".join(each.get("body", b"") for each in rest)
        return Told(status=start["status"], headers=headers, body=body)


@dataclass(slots=True, kw_only=True)
class Client:
    """A program with a key of Alice's project."""

    door: InferenceDoor
    actor: Actor
    secret: str
    sampler: Sampler

    def open(self, method: str, path: str, value: Any = None, **headers: str) -> Exchange:
        named = {"authorization": f"Bearer {self.secret}", **headers}
        lines = [(k.replace("_", "-").encode(), v.encode()) for k, v in named.items()]
        scope: Scope = {"type": "http", "method": method, "path": path, "headers": lines}
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return Exchange(door=self.door, scope=scope, body=body)

    async def post(self, path: str, /, **fields: Any) -> Told:
        return await self.open("POST", path, {"model": MODEL, **fields}).run()

    async def read(self, path: str, **headers: str) -> Told:
        return await self.open("GET", path, **headers).run()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey server of these tests."""
    home: Path = tmp_path_factory.mktemp("valkey")
    (home / "logs").mkdir()
    crew = Crew([], say=lambda _: None)
    environment = {key: value for key, value in os.environ.items() if key != "REDIS_URL"}
    Command().start_valkey(crew, environment, home)
    with Redis.from_url(environment["REDIS_URL"], retry=PATIENCE) as server:
        assert server.ping()
    yield environment["REDIS_URL"]
    crew.end()


@pytest.fixture(autouse=True)
def _quiet(settings: Settings, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key is remembered, and nobody else listens."""
    settings.REDIS_URL = redis_url
    monkeypatch.setattr(subscription, "_finished_listeners", [])
    monkeypatch.setattr(subscription, "_piece_listeners", [])
    forget_actors()
    yield
    forget_actors()


@pytest.fixture
def alice(db: None) -> Actor:
    return make_actor("alice")


@pytest.fixture
async def streams() -> AsyncIterator[Streams]:
    streams = Streams()
    subscription.on_finished(streams.wake)
    subscription.on_pieces(streams.hear)
    tasks = [asyncio.create_task(each) for each in (subscription.listen_for_ever(), sweep(streams))]
    yield streams
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(streams.look(connections.close_all) for _ in range(NUM_THREADS)))
    streams.threads.shutdown()


async def sweep(streams: Streams) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        await streams.sweep()


class Redirected(httpx.AsyncHTTPTransport):
    """To the one server there is, whatever a replica is called."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(host="127.0.0.1", port=self.port)
        return await super().handle_async_request(request)


@pytest.fixture
async def transport(turns: TurnThread) -> AsyncIterator[httpx.AsyncBaseTransport]:
    """To a server on a port: it tells its tokens one by one, and sees who hangs up."""
    port = find_free_port()
    config = uvicorn.Config(
        App(turns),
        port=port,
        lifespan="off",
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    async with Redirected(port) as transport:
        yield transport
    server.should_exit = True
    await serving


@pytest.fixture
async def sampler(transport: httpx.AsyncBaseTransport, base_model: Any) -> AsyncIterator[Sampler]:
    """Works for as long as the test."""
    async with open_sampler(transport) as sampler:
        shift = Shift(worker=WORKER, woken=sampler.woken)
        tasks = [asyncio.create_task(each) for each in (work(sampler), shift.listen(sampler))]
        yield sampler
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def work(sampler: Sampler) -> None:
    while True:
        if not await sampler.run_once():
            with suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await sampler.woken.wait()
            sampler.woken.clear()


@pytest.fixture
async def client(streams: Streams, sampler: Sampler, alice: Actor) -> Client:
    door = InferenceDoor(streams)
    _, secret = await sync_to_async(create_key)(actor=alice, name="test")
    return Client(door=door, actor=alice, secret=secret, sampler=sampler)
