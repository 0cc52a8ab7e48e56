"""The sampler process: it finds the servers that answer in rows, and loses nothing with one."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync

from tests.workers.serving.conftest import REPLICA, start_replica
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import replicas, services
from webapp.deployments.models import Deployment, HotLoad, Replica, SamplingCall
from webapp.fleet.models import BaseModel, BaseModelName, Worker
from workers import shifts
from workers.hotload import in_database
from workers.shifts import Shift
from workers.vllm import SamplingServer

MESSAGES = [{"role": "user", "content": "Hello"}]
DEADLINE = 30.0
TINY = Path(__file__).parents[2] / "assets" / "tiny-chatml-1m"


@dataclass(slots=True, kw_only=True)
class Stage:
    """What the test can do to the sampler while it works."""

    shift: Shift

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not await in_database(condition):
                await asyncio.sleep(0.01)

    async def start(self, number: str) -> None:
        await in_database(start_replica, number)

    async def lose(self, number: str) -> None:
        await in_database(replicas.mark_lost, REPLICA, start=number, error="It ended.")


@pytest.fixture
def play(
    transport: httpx.AsyncBaseTransport, monkeypatch: pytest.MonkeyPatch, db: None
) -> Callable[[Callable[[Stage], Awaitable[None]]], Stage]:
    """Run the sampler process beside a scene, and end it after."""
    monkeypatch.setattr(shifts, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(shifts, "BEAT_SECONDS", 0.02)

    def connect(url: str) -> SamplingServer:
        return SamplingServer(url, transport=transport)

    def play(scene: Callable[[Stage], Awaitable[None]]) -> Stage:
        stage = Stage(shift=Shift(worker="sampler-test", connect=connect))

        async def run() -> None:
            work = asyncio.create_task(stage.shift.work())
            try:
                await scene(stage)
            finally:
                stage.shift.end()
                await work

        async_to_sync(run)()
        return stage

    return play


def are_answered(*calls: SamplingCall) -> Callable[[], bool]:
    done = SamplingCall.objects.filter(
        pk__in=[call.pk for call in calls], status=SamplingCall.Status.DONE
    )
    return lambda: done.count() == len(calls)


def test_it_registers_answers_and_takes_its_row_along(
    play: Any, alice: Actor, base_model: BaseModel
) -> None:
    call = services.ask(actor=alice, base_model=base_model, messages=MESSAGES)
    held: list[Any] = []

    async def scene(stage: Stage) -> None:
        await stage.start("1")
        await stage.until(are_answered(call))
        await stage.until(lambda: bool(Worker.objects.get().holds.get("server")))
        held.append(await in_database(lambda: Worker.objects.get().holds["server"]))

    play(scene)
    assert held == ["built-in/1"]
    assert not Worker.objects.exists()


def test_a_server_that_starts_again_proves_its_deployments_again(
    play: Any, alice: Actor, checkpoint: Checkpoint
) -> None:
    deployment = services.create_deployment(actor=alice, name="support", checkpoint=checkpoint)

    def is_ready_on(start: str) -> Callable[[], bool]:
        loads = HotLoad.objects.filter(server=f"built-in/{start}", status="ready")
        ready = Deployment.objects.filter(pk=deployment.pk, status="ready")
        return lambda: loads.exists() and ready.exists()

    async def scene(stage: Stage) -> None:
        await stage.start("1")
        await stage.until(is_ready_on("1"))
        await stage.lose("1")
        assert not await in_database(is_ready_on("1"))
        await stage.start("2")
        await stage.until(is_ready_on("2"))

    play(scene)
    assert list(HotLoad.objects.values_list("status", flat=True)) == ["ready", "lost"]


def test_what_a_server_holds_is_not_loaded_again_by_the_next_sampler(
    play: Any, alice: Actor, checkpoint: Checkpoint
) -> None:
    calls: list[SamplingCall] = []

    async def scene(stage: Stage) -> None:
        await stage.start("1")
        calls.append(
            await in_database(services.ask, actor=alice, checkpoint=checkpoint, messages=MESSAGES)
        )
        await stage.until(are_answered(*calls))

    play(scene)
    play(scene)
    load = HotLoad.objects.get()
    assert load.status == HotLoad.Status.READY
    assert {call.hot_load_id for call in SamplingCall.objects.all()} == {load.pk}


def test_a_base_model_that_was_added_since_the_server_started_is_answered_by_it(
    play: Any, alice: Actor, base_model: BaseModel, tmp_path: Path
) -> None:
    call = services.ask(actor=alice, base_model=base_model, messages=MESSAGES)
    (tmp_path / "another").symlink_to(TINY)

    def add_and_ask() -> SamplingCall:
        added = BaseModel.objects.create(path=str(tmp_path / "another"), context_tokens=512)
        BaseModelName.objects.create(base_model=added, name="another")
        return services.ask(actor=alice, base_model=added, messages=MESSAGES)

    async def scene(stage: Stage) -> None:
        await stage.start("1")
        await stage.until(are_answered(call))
        await stage.until(are_answered(await in_database(add_and_ask)))

    play(scene)
    assert Replica.objects.get().start == "1"


def test_without_a_server_calls_wait_for_one(
    play: Any, alice: Actor, base_model: BaseModel
) -> None:
    call = services.ask(actor=alice, base_model=base_model, messages=MESSAGES)

    async def scene(stage: Stage) -> None:
        await stage.until(lambda: Worker.objects.filter(holds__has_key="calls").exists())
        await in_database(call.refresh_from_db)
        assert call.status == SamplingCall.Status.QUEUED
        await stage.start("1")
        await stage.until(are_answered(call))

    play(scene)
