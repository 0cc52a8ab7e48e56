"""Adapters on the real vLLM: each proven, several at once, and loaded again where one is gone."""

import asyncio
from collections.abc import Callable

import pytest
from asgiref.sync import async_to_sync

from tests.vllm_server import RealVllm
from tests.workers.serving.conftest import TOKENS
from training.types import SampleRequest, SamplingParams
from webapp.checkpoints.models import Checkpoint
from webapp.deployments.models import HotLoad
from workers.hotload import HotLoads, LoadFailed, in_database

Status = HotLoad.Status
SCORED = SampleRequest(
    prompt=TOKENS, params=SamplingParams(max_tokens=4, temperature=0.0), prompt_logprobs=True
)


def test_adapters_of_two_checkpoints_answer_side_by_side_and_one_that_vllm_dropped_goes_on(
    real_vllm: RealVllm, save: Callable[..., Checkpoint]
) -> None:
    first, second = save("first"), save("second")
    names: list[str] = []

    async def run() -> None:
        async with real_vllm.connect() as server:
            loads = HotLoads(server, "vllm/1")

            async def ask(checkpoint: Checkpoint) -> list[float | None]:
                load, output = await loads.use(
                    checkpoint, lambda load: server.generate(load.adapter_name, SCORED)
                )
                names.append(load.adapter_name)
                return list(output.prompt_logprobs or ())

            one, other = await asyncio.gather(ask(first), ask(second))
            assert one[1:] != pytest.approx(other[1:], abs=1e-2)
            gone = HotLoad.objects.filter(checkpoint=first).values_list("adapter_name", flat=True)
            await server.unload_adapter(await in_database(gone.get))
            again = await ask(first)
            assert again[1:] == pytest.approx(one[1:], abs=1e-4)

    async_to_sync(run)()
    assert len(set(names)) == 3
    statuses = list(HotLoad.objects.order_by("pk").values_list("status", flat=True))
    assert sorted(statuses) == [Status.LOST, Status.READY, Status.READY]
    assert all((each.max_difference or 0) < 1e-4 for each in HotLoad.objects.all())


def test_an_adapter_that_answers_otherwise_on_vllm_is_not_served_and_the_other_goes_on(
    real_vllm: RealVllm, save: Callable[..., Checkpoint]
) -> None:
    first, second = save("first"), save("second")
    Checkpoint.objects.filter(pk=second.pk).update(
        probe=second.probe | {"logprobs": first.probe["logprobs"]}
    )
    second.refresh_from_db()

    async def run() -> None:
        async with real_vllm.connect() as server:
            loads = HotLoads(server, "vllm/1")
            served, _ = await loads.use(
                first, lambda load: server.generate(load.adapter_name, SCORED)
            )
            with pytest.raises(LoadFailed, match="at its token"):
                await loads.use(second, lambda load: server.generate(load.adapter_name, SCORED))
            assert await server.list_adapters() == [served.adapter_name]

    async_to_sync(run)()
