"""A supervisor beside a scene that says which of its servers die, hang and come back."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from tests.workers.serving.fakes import Machines
from webapp.deployments.models import Replica
from workers import keeper, supervisor
from workers.hotload import in_database
from workers.supervisor import Supervisor

DEADLINE = 60.0

Status = Replica.Status
Scene = Callable[[Machines], Awaitable[None]]


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Machines:
    monkeypatch.setattr(supervisor, "LOOK_SECONDS", 0.01)
    for name in ("CHECK", "KNOCK", "FIRST_WAIT", "WORK", "STATS"):
        monkeypatch.setattr(keeper, f"{name}_SECONDS", 0.01)
    return Machines()


@pytest.fixture
def on_vllm(settings: Any) -> None:
    settings.SERVING = "vllm"


@pytest.fixture
def play(machines: Machines, db: None) -> Callable[[Scene], None]:
    """Run the supervisor beside a scene, and end it after."""

    def play(scene: Scene) -> None:
        async def run() -> None:
            kept = Supervisor(launch=machines.launch, connect=machines.connect)
            work = asyncio.create_task(kept.work())
            try:
                await scene(machines)
            finally:
                kept.end()
                await work

        async_to_sync(run)()

    return play


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not await in_database(condition):
            await asyncio.sleep(0.01)


def has(name: str = "built-in", **columns: Any) -> Callable[[], bool]:
    return Replica.objects.filter(name=name, **columns).exists


async def read(name: str = "built-in") -> Replica:
    return await in_database(Replica.objects.get, name=name)
