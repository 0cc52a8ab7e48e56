"""One server after another: each start is a shift, and nothing is lost between them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync

from tests.workers.serving.conftest import open_sampler
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import services
from webapp.deployments.models import Deployment, HotLoad, SamplingCall
from webapp.fleet.models import BaseModel, BaseModelName, Worker
from workers import shifts
from workers.hotload import in_database
from workers.shifts import Shifts, list_models
from workers.vllm import SamplingServer

MESSAGES = [{"role": "user", "content": "Hello"}]
DEADLINE = 30.0


@dataclass(slots=True, kw_only=True)
class Machine:
    """The server's process as the test plays it."""

    server: SamplingServer
    incarnation: str | None = "1"


@dataclass(slots=True, kw_only=True)
class Stage:
    """What the test can do to the sampler while it works."""

    shifts: Shifts
    opened: list[Mapping[str, Path]] = field(default_factory=list)
    machine: Machine | None = None

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not await in_database(condition):
                await asyncio.sleep(0.01)


@pytest.fixture
def play(
    transport: httpx.AsyncBaseTransport, monkeypatch: pytest.MonkeyPatch, db: None
) -> Callable[[Callable[[Stage], Awaitable[None]]], Stage]:
    """Run the sampler process beside a scene, and end it after."""
    monkeypatch.setattr(shifts, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(shifts, "BEAT_SECONDS", 0.02)

    def play(scene: Callable[[Stage], Awaitable[None]]) -> Stage:
        stage = Stage(shifts=Shifts(worker="sampler-test"))

        @asynccontextmanager
        async def open_server(models: Mapping[str, Path]) -> AsyncIterator[Machine]:
            stage.opened.append(models)
            async with SamplingServer("http://sampler", transport=transport) as server:
                stage.machine = Machine(server=server)
                yield stage.machine

        monkeypatch.setattr(shifts, "open_server", open_server)

        async def run() -> None:
            work = asyncio.create_task(stage.shifts.work())
            try:
                await scene(stage)
            finally:
                stage.shifts.end()
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
        await stage.until(are_answered(call))
        await stage.until(lambda: bool(Worker.objects.get().holds.get("server")))
        held.append(await in_database(lambda: Worker.objects.get().holds["server"]))

    play(scene)
    assert held == ["sampler-test/1"]
    assert not Worker.objects.exists()


def test_a_server_that_starts_again_proves_its_deployments_again(
    play: Any, alice: Actor, checkpoint: Checkpoint
) -> None:
    deployment = services.create_deployment(actor=alice, name="support", checkpoint=checkpoint)

    def is_ready_on(start: str) -> Callable[[], bool]:
        loads = HotLoad.objects.filter(server=f"sampler-test/{start}", status="ready")
        ready = Deployment.objects.filter(pk=deployment.pk, status="ready")
        return lambda: loads.exists() and ready.exists()

    async def scene(stage: Stage) -> None:
        await stage.until(is_ready_on("1"))
        assert stage.machine is not None
        stage.machine.incarnation = None
        await asyncio.sleep(0.05)
        stage.machine.incarnation = "2"
        await stage.until(is_ready_on("2"))

    play(scene)
    assert set(HotLoad.objects.values_list("status", flat=True)) == {"lost"}
    deployment.refresh_from_db()
    assert deployment.status == Deployment.Status.LOADING


def test_a_base_model_that_is_added_is_offered_without_a_restart_by_hand(
    play: Any, alice: Actor, base_model: BaseModel, tmp_path: Path
) -> None:
    call = services.ask(actor=alice, base_model=base_model, messages=MESSAGES)

    def add_model() -> None:
        added = BaseModel.objects.create(path=str(tmp_path))
        BaseModelName.objects.create(base_model=added, name="another")

    async def scene(stage: Stage) -> None:
        await stage.until(are_answered(call))
        await in_database(add_model)
        await stage.until(lambda: len(stage.opened) == 2)

    stage = play(scene)
    assert [sorted(models) for models in stage.opened] == [["tiny/chat"], ["another", "tiny/chat"]]


def test_a_question_to_a_base_model_of_a_moment_ago_brings_the_next_start(
    play: Any, alice: Actor, base_model: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the beat that would have seen it."""
    monkeypatch.setattr(shifts, "BEAT_SECONDS", 10 * DEADLINE)
    call = services.ask(actor=alice, base_model=base_model, messages=MESSAGES)

    def add_and_ask() -> None:
        added = BaseModel.objects.create(path=str(tmp_path))
        BaseModelName.objects.create(base_model=added, name="another")
        services.ask(actor=alice, base_model=added, messages=MESSAGES)

    async def scene(stage: Stage) -> None:
        await stage.until(are_answered(call))
        await in_database(add_and_ask)
        await stage.until(lambda: len(stage.opened) == 2)

    assert sorted(play(scene).opened[1]) == ["another", "tiny/chat"]


def test_what_a_server_was_not_started_with_waits_and_does_not_fail(
    transport: httpx.AsyncBaseTransport, alice: Actor, base_model: BaseModel, checkpoint: Checkpoint
) -> None:
    call = services.ask(actor=alice, base_model=base_model, messages=MESSAGES)
    deployment = services.create_deployment(actor=alice, name="support", checkpoint=checkpoint)
    seen: list[bool] = []

    async def begin() -> None:
        async with open_sampler(transport, models=()) as sampler:
            seen.append(await sampler.run_once())
            seen.append(sampler.is_outdated)
            seen.append(bool(sampler.tasks or sampler.proving))

    async_to_sync(begin)()
    assert seen == [False, True, False]
    call.refresh_from_db()
    deployment.refresh_from_db()
    assert (call.status, call.worker) == (SamplingCall.Status.QUEUED, "")
    assert deployment.status == Deployment.Status.LOADING


def test_without_a_base_model_it_waits_for_one(play: Any) -> None:
    async def scene(stage: Stage) -> None:
        await stage.until(Worker.objects.exists)
        await asyncio.sleep(0.05)

    assert play(scene).opened == []


def test_every_base_model_is_offered_under_its_first_name(base_model: BaseModel) -> None:
    BaseModelName.objects.create(base_model=base_model, name="alias")
    assert list_models() == {"tiny/chat": Path(base_model.path)}
