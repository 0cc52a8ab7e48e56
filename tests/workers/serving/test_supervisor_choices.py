"""Which servers run, and where: vLLM where it is asked, a deployment's own, somebody else's."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils.timezone import now

from tests.workers.serving.fakes import Machines
from tests.workers.serving.supervised import (
    Status,
    has,
    machines,
    on_vllm,
    play,
    read,
    until,
)
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import replicas, services
from webapp.deployments.models import Replica, SamplingCall
from webapp.deployments.wanted import Wanted
from webapp.fleet.models import BaseModel
from workers import keeper, servers
from workers.hotload import in_database
from workers.preparation import CannotStart

__all__ = ["machines", "on_vllm", "play"]  # fixtures

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.mark.usefixtures("on_vllm")
def test_vllm_starts_when_a_call_waits_and_stops_when_nobody_has_asked_for_long(
    play: Any, alice: Actor, base_model: BaseModel, settings: Any
) -> None:
    name = f"vllm-tiny-chat-{base_model.pk[-4:]}"

    async def scene(machines: Machines) -> None:
        await asyncio.sleep(0.05)
        assert machines.started == {}
        call = await in_database(
            services.ask, actor=alice, base_model=base_model, messages=MESSAGES
        )
        await until(has(name, status=Status.READY, base_model=base_model, engine="vllm"))
        await in_database(replicas.note_used, [name])
        await in_database(SamplingCall.objects.filter(pk=call.pk).update, status="done")
        await asyncio.sleep(0.05)
        assert not machines.last(name).is_ended
        long_ago = now() - timedelta(seconds=settings.IDLE_SECONDS + 1)
        await in_database(Replica.objects.filter(name=name).update, used_at=long_ago)
        await until(has(name, status=Status.STOPPED))

    play(scene)


@pytest.mark.usefixtures("on_vllm")
def test_a_deployment_that_is_scaled_to_zero_goes_to_sleep_and_wakes_when_it_is_asked(
    play: Any, alice: Actor, base_model: BaseModel
) -> None:
    deployment = services.create_deployment(actor=alice, name="support", base_model=base_model)
    (first,) = services.list_changes()
    name = f"vllm-tiny-chat-{base_model.pk[-4:]}"

    async def scene(machines: Machines) -> None:
        await until(has(name, status=Status.READY))
        await in_database(services.settle_change, first)
        await in_database(replicas.note_used, [name])
        await in_database(
            replicas.scale_deployment, actor=alice, deployment=deployment, num_replicas=0
        )
        await until(has(name, status=Status.STOPPED, start=""))
        await in_database(deployment.refresh_from_db)
        await in_database(services.ask, actor=alice, deployment=deployment, messages=MESSAGES)
        await until(has(name, status=Status.READY))
        assert len(machines.started[name]) == 2

    play(scene)


@pytest.mark.usefixtures("on_vllm")
def test_a_model_of_all_weights_has_a_server_of_its_own_on_vllm(
    play: Any, alice: Actor, base_model: BaseModel, save: Callable[..., Checkpoint]
) -> None:
    whole = save(rank=0, type="base")
    deployment = services.create_deployment(actor=alice, name="whole", checkpoint=whole)

    async def scene(machines: Machines) -> None:
        await until(has(f"vllm-{deployment.pk}", status=Status.READY, deployment=deployment))
        assert list(machines.started) == [f"vllm-{deployment.pk}"]

    play(scene)


@pytest.mark.usefixtures("on_vllm")
def test_a_model_of_all_weights_that_no_deployment_holds_wakes_the_built_in_server(
    play: Any, alice: Actor, save: Callable[..., Checkpoint]
) -> None:
    whole = save(rank=0, type="base")
    services.ask(actor=alice, checkpoint=whole, messages=MESSAGES)

    async def scene(machines: Machines) -> None:
        await until(has(status=Status.READY, engine="built_in"))
        assert list(machines.started) == ["built-in"]

    play(scene)


def test_a_server_that_somebody_else_starts_is_watched_and_not_ended(
    play: Any, base_model: BaseModel, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SAMPLING_SERVER_URL = "http://elsewhere"
    monkeypatch.setattr(keeper, "HUNG_SECONDS", 0.05)

    async def scene(machines: Machines) -> None:
        await until(has("external", status=Status.READY, url="http://elsewhere"))
        first = await read("external")
        machines.is_slow = True
        machines.last("external").is_up = False
        await until(lambda: len(machines.started["external"]) == 2)
        await until(has("external", status=Status.STARTING))
        machines.last("external").is_up = True
        await until(has("external", status=Status.READY))
        assert (await read("external")).start != first.start

    play(scene)


def test_servers_take_turns_with_the_devices_and_leave_memory_to_a_trainer(
    base_model: BaseModel, settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings.VLLM_DEVICES, settings.VLLM_PYTHON = ["1", "3"], tmp_path
    wanted = Wanted(name="vllm-1", engine="vllm", base_model=base_model, max_rank=100)
    on_cpu = servers.build_vllm(wanted, 7)
    assert on_cpu[on_cpu.index("--kv-cache-memory-bytes") + 1] == str(2**30)
    monkeypatch.setattr(servers, "NVIDIA", tmp_path)
    on_gpu = servers.build_vllm(wanted, 7)
    assert on_gpu[on_gpu.index("--gpu-memory-utilization") + 1] == "0.4"
    assert on_gpu[on_gpu.index("--max-lora-rank") + 1] == "128"
    taken = [servers.describe_vllm(place)["CUDA_VISIBLE_DEVICES"] for place in range(3)]
    assert taken == ["1", "3", "1"]


def test_vllm_without_its_environment_or_model_does_not_start_and_says_what_to_do(
    base_model: BaseModel, settings: Any, tmp_path: Path
) -> None:
    wanted = Wanted(name="vllm-1", engine="vllm", base_model=base_model)
    settings.VLLM_PYTHON = tmp_path / "bin" / "python"
    with pytest.raises(CannotStart, match="make run SERVING=vllm"):
        servers.build_vllm(wanted, 7)
    settings.VLLM_PYTHON, base_model.path = tmp_path, str(tmp_path)
    with pytest.raises(CannotStart, match=r"is not at .* any more"):
        servers.build_vllm(wanted, 7)
