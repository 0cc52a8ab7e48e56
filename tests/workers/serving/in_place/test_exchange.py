"""One whole model takes the place of another when it is proven, or not at all."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from asgiref.sync import async_to_sync

from tests.workers.serving.in_place.conftest import Play, answer, do, list_restored, serve
from tests.workers.serving.in_place.one_model import OneModel
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import calls, services
from webapp.deployments.models import (
    Deployment,
    DeploymentChange,
    HotLoad,
    Replica,
    SamplingCall,
)
from workers.changes import Changes
from workers.hotload import LoadFailed, WeightsMoved, in_database
from workers.in_place import InPlaceLoads
from workers.starts import Start, describe_answerable
from workers.vllm import SamplingServer

Status = HotLoad.Status


def test_files_that_are_damaged_do_not_touch_the_weights_that_answer(
    play: Play,
    change: Callable[..., DeploymentChange],
    base: Checkpoint,
    delta: Checkpoint,
    deployment: Deployment,
    home: Path,
    one_model: OneModel,
) -> None:
    file = home / delta.path / "weights.delta"
    file.write_bytes(file.read_bytes()[:-7] + b"changed")
    digests: list[str] = []

    async def scene(start: Start) -> None:
        (first,) = await in_database(services.list_changes)
        await serve(start, first)
        await serve(start, await in_database(change, delta))
        digests.append((await start.server.describe()).digest)

    play(scene, one_model)
    failed = deployment.changes.first()
    assert failed is not None
    assert "weights.delta does not have the digest" in failed.error
    assert digests == [base.digest]
    assert HotLoad.objects.get(status=Status.READY).checkpoint == base


def test_a_sampler_that_comes_back_finds_what_the_server_holds(
    play: Play, base: Checkpoint, one_model: OneModel
) -> None:
    async def load(start: Start) -> None:
        (first,) = await in_database(services.list_changes)
        await serve(start, first)

    async def come_back(start: Start) -> None:
        assert start.loads.names
        await answer(start, base)

    play(load, one_model)
    play(come_back, one_model)
    assert HotLoad.objects.count() == 1


def test_a_server_that_forgot_its_weights_is_given_them_when_it_is_asked(
    play: Play, base: Checkpoint, one_model: OneModel
) -> None:
    async def scene(start: Start) -> None:
        load, _ = await answer(start, base)
        assert load.checkpoint == base

    play(scene, one_model)
    assert HotLoad.objects.get().status == Status.READY


def test_what_was_asked_of_weights_that_were_refused_is_asked_once_more(
    play: Play,
    change: Callable[..., DeploymentChange],
    base: Checkpoint,
    delta: Checkpoint,
    one_model: OneModel,
) -> None:
    """It may have been answered by them."""
    Checkpoint.objects.filter(pk=delta.pk).update(probe=base.probe)

    async def scene(start: Start) -> None:
        (first,) = await in_database(services.list_changes)
        await serve(start, first)
        one_model.held = asyncio.Event()
        flying = asyncio.create_task(answer(start, base))
        await one_model.reached.wait()
        await serve(start, await in_database(change, delta, "async"))
        one_model.held.set()
        with pytest.raises(WeightsMoved):
            await flying
        load, _ = await answer(start, base)
        assert load.checkpoint == base

    play(scene, one_model)
    assert one_model.modes == ["keep"] * 3  # the first ones, the refused ones, and back


def test_what_asks_for_other_weights_than_are_there_does_not_turn_them_round(
    play: Play,
    change: Callable[..., DeploymentChange],
    base: Checkpoint,
    delta: Checkpoint,
    one_model: OneModel,
) -> None:
    async def scene(start: Start) -> None:
        (first,) = await in_database(services.list_changes)
        await serve(start, first)
        await serve(start, await in_database(change, delta, "sync"))
        with pytest.raises(WeightsMoved):
            await answer(start, base)
        load, _ = await answer(start, delta)
        assert load.checkpoint == delta

    play(scene, one_model)
    assert one_model.modes == ["keep", "wait"]
    assert one_model.version == HotLoad.objects.get(status=Status.READY).adapter_name


def test_where_one_of_two_servers_does_not_agree_both_hold_what_they_held(
    play: Play,
    change: Callable[..., DeploymentChange],
    base: Checkpoint,
    delta: Checkpoint,
    deployment: Deployment,
    one_model: OneModel,
) -> None:
    async def scene(start: Start) -> None:
        class Refusing(Start):
            async def serve(self, change: DeploymentChange) -> HotLoad | None:
                raise LoadFailed("It differs.")

        (first,) = await in_database(services.list_changes)
        await serve(start, first)
        other = Refusing(replica=start.replica, server=start.server, loads=start.loads)
        await in_database(change, delta)
        works = Changes(lambda _: [start, other], do)
        await works.begin()
        await asyncio.gather(*works.tasks.values())
        load, _ = await answer(start, base)
        assert load.checkpoint == base

    play(scene, one_model)
    deployment.refresh_from_db()
    assert deployment.checkpoint == base
    failed = deployment.changes.first()
    assert failed is not None
    assert failed.error == "It differs."


def test_a_server_without_the_extension_says_so(base: Checkpoint) -> None:
    plain = httpx.MockTransport(lambda _: httpx.Response(404, json={"detail": "Not Found"}))

    async def run() -> None:
        async with SamplingServer("http://vllm", transport=plain) as server:
            loads = InPlaceLoads(server, "vllm-own/1")
            with pytest.raises(LoadFailed, match="cannot replace its model"):
                await loads.use(base, lambda _: server.health())

    async_to_sync(run)()
    assert HotLoad.objects.get().status == Status.FAILED


def test_weights_of_a_change_that_was_overtaken_make_way_for_what_is_served(
    play: Play,
    change: Callable[..., DeploymentChange],
    base: Checkpoint,
    delta: Checkpoint,
    one_model: OneModel,
) -> None:
    async def scene(start: Start) -> None:
        (first,) = await in_database(services.list_changes)
        await serve(start, first)
        overtaken = await in_database(change, delta)
        works = Changes(lambda _: [start], do)
        await works.begin()
        await in_database(change, base)
        await asyncio.gather(*works.tasks.values())
        load, _ = await answer(start, base)
        assert load.checkpoint == base
        await in_database(overtaken.refresh_from_db)
        assert overtaken.status == DeploymentChange.Status.SUPERSEDED

    play(scene, one_model)
    assert one_model.digest == base.digest


def test_a_change_that_is_prepared_once_more_is_not_restored_once_more(
    play: Play,
    change: Callable[..., DeploymentChange],
    base: Checkpoint,
    delta: Checkpoint,
    one_model: OneModel,
    home: Path,
) -> None:
    """As where another server of the deployment was lost between."""

    async def scene(start: Start) -> None:
        (first,) = await in_database(services.list_changes)
        await serve(start, first)
        second = await in_database(change, delta)
        await start.prepare(second)
        await start.prepare(second)
        await serve(start, second)

    play(scene, one_model)
    assert HotLoad.objects.get(checkpoint=delta).status == Status.READY
    assert len(list_restored(home)) == 1


def test_an_adapter_is_no_call_for_a_server_that_holds_whole_models(
    play: Play, save: Callable[..., Checkpoint], deployment: Deployment, one_model: OneModel
) -> None:
    adapter = save("first")
    Deployment.objects.filter(pk=deployment.pk).update(checkpoint=adapter)
    calls.submit_call(
        project=deployment.project,
        purpose=SamplingCall.Purpose.REST,
        base_model=adapter.base_model,
        checkpoint=adapter,
        payload={"prompt": [1, 5]},
    )

    async def scene(start: Start) -> None:
        start.replica = await in_database(
            Replica.objects.select_related("deployment").get, pk=start.replica.pk
        )
        assert not start.can_answer(adapter.base_model, adapter)
        among = SamplingCall.objects.filter(describe_answerable([start]))
        assert not await in_database(among.exists)

    play(scene, one_model)
