"""Checkpoints of all weights take the place of the real vLLM's model, each with its proof."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vllm_server import RealVllm
from tests.workers.serving.in_place.conftest import LONG, Play, answer, list_restored, serve
from training import deltas
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import services
from webapp.deployments.models import Deployment, DeploymentChange, HotLoad
from workers import whole_folders
from workers.hotload import in_database
from workers.starts import Start

Status = HotLoad.Status


def test_a_base_and_its_deltas_take_each_others_place_without_a_restart(
    play: Play,
    change: Callable[..., DeploymentChange],
    save_full: Callable[..., Checkpoint],
    delta: Checkpoint,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    real_vllm: RealVllm,
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

    play(scene, real_vllm)
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
    play: Play,
    change: Callable[..., DeploymentChange],
    base: Checkpoint,
    delta: Checkpoint,
    deployment: Deployment,
    home: Path,
    real_vllm: RealVllm,
) -> None:
    Checkpoint.objects.filter(pk=delta.pk).update(probe=base.probe)
    said: list[Any] = []

    async def scene(start: Start) -> None:
        (first,) = await in_database(services.list_changes)
        await serve(start, first)
        said.append((await answer(start, base))[1].sequences)
        await serve(start, await in_database(change, delta, "async"))
        load, output = await answer(start, base)
        said.append(output.sequences)
        assert load.checkpoint == base

    play(scene, real_vllm)
    deployment.refresh_from_db()
    assert (deployment.status, deployment.checkpoint) == (Deployment.Status.READY, base)
    failed = deployment.changes.first()
    assert failed is not None
    assert failed.status == DeploymentChange.Status.FAILED
    assert "differ from the trainer's by up to" in failed.error
    assert said[0] == said[1]
    assert list_restored(home) == []


def test_a_request_in_flight_goes_on_with_the_new_weights_and_is_answered_when_they_are_proven(
    play: Play,
    change: Callable[..., DeploymentChange],
    base: Checkpoint,
    delta: Checkpoint,
    real_vllm: RealVllm,
) -> None:
    answered: list[Checkpoint] = []

    async def scene(start: Start) -> None:
        (first,) = await in_database(services.list_changes)
        await serve(start, first)
        tokens: list[Any] = []
        begun, served = asyncio.Event(), asyncio.Event()

        async def read(_: HotLoad) -> None:
            async for each in start.server.stream(start.loads.name_model(_), LONG):
                tokens.append(each)
                begun.set()
            await served.wait()  # however fast the server is

        flying = asyncio.create_task(start.loads.use(base, read))
        await begun.wait()
        wish = await in_database(change, delta, "async")
        await serve(start, wish)
        served.set()
        load, _ = await flying
        answered.append(load.checkpoint)

    play(scene, real_vllm)
    assert answered == [delta]
