"""Checkpoints of all weights take the place of the real vLLM's model, each with its proof."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync

from tests.vllm_server import RealVllm
from tests.workers.serving.conftest import MODEL, TOKENS, start_replica
from training import deltas
from training.types import SampleRequest, SamplingParams
from webapp.accounts.models import Actor, Role
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import services
from webapp.deployments.models import Deployment, DeploymentChange, HotLoad, Replica
from workers import whole_folders
from workers.changes import Changes
from workers.hotload import LoadFailed, in_database
from workers.in_place import InPlaceLoads
from workers.starts import Start
from workers.vllm import SamplingServer

Status = HotLoad.Status
Scene = Callable[[Start], Awaitable[None]]
SHORT = SampleRequest(prompt=TOKENS, params=SamplingParams(max_tokens=2, temperature=0.0))
LONG = replace(SHORT, params=SamplingParams(max_tokens=400, temperature=0.0, stop=()))


@pytest.fixture
def deployment(base: Checkpoint) -> Deployment:
    actor = Actor(user=base.project.members.get(), project=base.project, role=Role.OWNER)
    return services.create_deployment(actor=actor, name="whole", checkpoint=base)


@pytest.fixture
def change(deployment: Deployment) -> Callable[..., DeploymentChange]:
    def change(checkpoint: Checkpoint, transition: str = "") -> DeploymentChange:
        owner = deployment.project.members.get()
        actor = Actor(user=owner, project=deployment.project, role=Role.OWNER)
        return services.change_checkpoint(
            actor=actor, deployment=deployment, checkpoint=checkpoint, transition=transition
        )

    return change


@pytest.fixture
def play(real_vllm: RealVllm, deployment: Deployment) -> Callable[[Scene], None]:
    """With one start of a vLLM that the deployment has for itself."""
    replica = start_replica(
        name="vllm-own",
        engine=Replica.Engine.VLLM,
        base_model=deployment.base_model,
        deployment=deployment,
    )

    def play(scene: Scene) -> None:
        async def run() -> None:
            async with real_vllm.connect() as server:
                loads = InPlaceLoads(server, "vllm-own/1", replica=replica)
                await loads.adopt()
                await scene(Start(replica=replica, server=server, loads=loads))

        async_to_sync(run)()

    return play


async def serve(start: Start, *changes: DeploymentChange) -> None:
    """As a sampler does it, one after the other."""

    async def guard(_: DeploymentChange, work: Awaitable[None]) -> None:
        await work

    for _ in changes:
        works = Changes(lambda _: [start], guard)
        await works.begin()
        await asyncio.gather(*works.tasks.values())


async def answer(start: Start, checkpoint: Checkpoint) -> tuple[HotLoad, Any]:
    return await start.loads.use(
        checkpoint, lambda load: start.server.generate(start.loads.name_model(load), SHORT)
    )


def list_restored(home: Path) -> list[str]:
    return sorted(folder.name for folder in (home / "restored").glob("*/*"))


def test_a_base_and_its_deltas_take_each_others_place_without_a_restart(
    play: Callable[[Scene], None],
    change: Callable[..., DeploymentChange],
    save_full: Callable[..., Checkpoint],
    base: Checkpoint,
    delta: Checkpoint,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second = save_full("second", delta, 2)
    chains: list[str] = []

    def restore(folder: Path, target: Path) -> None:
        chains.append(folder.name)
        deltas.restore_folder(folder, target)

    monkeypatch.setattr(whole_folders, "restore_folder", restore)
    restored: list[list[str]] = []

    async def scene(start: Start) -> None:
        (first,) = await in_database(services.list_changes)
        await serve(start, first)
        for checkpoint in (delta, second):
            await serve(start, await in_database(change, checkpoint))
            load, _ = await answer(start, checkpoint)
            assert load.checkpoint == checkpoint
            restored.append(list_restored(home))

    play(scene)
    changes = list(DeploymentChange.objects.order_by("pk"))
    assert [each.status for each in changes] == [DeploymentChange.Status.SERVED] * 3
    loads = list(HotLoad.objects.order_by("pk"))
    assert [each.status for each in loads] == [Status.LOST, Status.LOST, Status.READY]
    assert [each.max_difference for each in loads if (each.max_difference or 1) > 1e-4] == []
    assert all(each.pause_milliseconds for each in loads)
    assert [change.pause_milliseconds for change in changes] == [
        load.pause_milliseconds for load in loads
    ]
    # The second delta is restored from what the first one left, which goes then.
    assert chains == ["delta"]
    assert restored == [[loads[1].adapter_name], [loads[2].adapter_name]]


def test_weights_that_do_not_agree_give_way_to_those_that_answered_before(
    play: Callable[[Scene], None],
    change: Callable[..., DeploymentChange],
    base: Checkpoint,
    delta: Checkpoint,
    deployment: Deployment,
    home: Path,
) -> None:
    Checkpoint.objects.filter(pk=delta.pk).update(probe=base.probe)
    said: list[Any] = []

    async def scene(start: Start) -> None:
        (first,) = await in_database(services.list_changes)
        await serve(start, first)
        said.append((await answer(start, base))[1].sequences)
        flying = asyncio.create_task(
            start.loads.use(base, lambda _: start.server.generate(MODEL, LONG))
        )
        await asyncio.sleep(0.1)
        await serve(start, await in_database(change, delta, "async"))
        load, output = await answer(start, base)
        said.append(output.sequences)
        assert load.checkpoint == base
        flying.cancel()

    play(scene)
    deployment.refresh_from_db()
    assert (deployment.status, deployment.checkpoint) == (Deployment.Status.READY, base)
    failed = deployment.changes.first()
    assert failed is not None
    assert failed.status == DeploymentChange.Status.FAILED
    assert "differ from the trainer's by up to" in failed.error
    assert said[0] == said[1]
    assert list_restored(home) == []


def test_files_that_are_damaged_do_not_touch_the_weights_that_answer(
    play: Callable[[Scene], None],
    change: Callable[..., DeploymentChange],
    base: Checkpoint,
    delta: Checkpoint,
    deployment: Deployment,
    home: Path,
) -> None:
    file = home / delta.path / "weights.delta"
    file.write_bytes(file.read_bytes()[:-7] + b"changed")
    digests: list[str] = []

    async def scene(start: Start) -> None:
        (first,) = await in_database(services.list_changes)
        await serve(start, first)
        await serve(start, await in_database(change, delta))
        digests.append((await start.server.describe()).digest)

    play(scene)
    failed = deployment.changes.first()
    assert failed is not None
    assert "weights.delta does not have the digest" in failed.error
    assert digests == [base.digest]
    assert HotLoad.objects.get(status=Status.READY).checkpoint == base


def test_a_request_in_flight_goes_on_with_the_new_weights_and_is_answered_when_they_are_proven(
    play: Callable[[Scene], None],
    change: Callable[..., DeploymentChange],
    base: Checkpoint,
    delta: Checkpoint,
) -> None:
    answered: list[Checkpoint] = []

    async def scene(start: Start) -> None:
        (first,) = await in_database(services.list_changes)
        await serve(start, first)
        tokens: list[Any] = []
        begun = asyncio.Event()

        async def read(_: HotLoad) -> None:
            async for each in start.server.stream(start.loads.name_model(_), LONG):
                tokens.append(each)
                begun.set()

        flying = asyncio.create_task(start.loads.use(base, read))
        await begun.wait()
        wish = await in_database(change, delta, "async")
        await serve(start, wish)
        is_still_flying = not flying.done()
        load, _ = await flying
        assert is_still_flying
        answered.append(load.checkpoint)

    play(scene)
    assert answered == [delta]


def test_a_sampler_that_comes_back_finds_what_the_server_holds(
    play: Callable[[Scene], None], base: Checkpoint
) -> None:
    async def load(start: Start) -> None:
        (first,) = await in_database(services.list_changes)
        await serve(start, first)

    async def come_back(start: Start) -> None:
        assert start.loads.names
        await answer(start, base)

    play(load)
    play(come_back)
    assert HotLoad.objects.count() == 1


def test_a_server_that_forgot_its_weights_is_given_them_when_it_is_asked(
    play: Callable[[Scene], None], base: Checkpoint
) -> None:
    async def scene(start: Start) -> None:
        load, _ = await answer(start, base)
        assert load.checkpoint == base

    play(scene)
    assert HotLoad.objects.get().status == Status.READY


def test_a_server_without_the_extension_says_so(base: Checkpoint) -> None:
    plain = httpx.MockTransport(lambda _: httpx.Response(404, json={"detail": "Not Found"}))

    async def run() -> None:
        async with SamplingServer("http://vllm", transport=plain) as server:
            loads = InPlaceLoads(server, "vllm-own/1")
            with pytest.raises(LoadFailed, match="cannot replace its model"):
                await loads.use(base, lambda _: server.health())

    async_to_sync(run)()
    assert HotLoad.objects.get().status == Status.FAILED
