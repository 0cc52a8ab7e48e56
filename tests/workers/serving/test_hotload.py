"""A checkpoint is served under a name of its own, and only after it was proven to be itself."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync
from safetensors.torch import load_file

from tests.workers.serving.conftest import Saved
from training.engine.checkpoint import trace_tensors
from training.errors import InvalidInput
from webapp.checkpoints.models import Checkpoint
from webapp.deployments.models import HotLoad
from workers import hotload
from workers.hotload import HotLoads, LoadFailed, in_database
from workers.proof import trace_adapter
from workers.vllm import ModelMissing, SamplingServer

Status = HotLoad.Status
Load = Callable[..., None]
Change = Callable[[Any], httpx.Response]


@pytest.fixture
def load(transport: httpx.AsyncBaseTransport, db: None) -> Callable[..., None]:
    """Do something with the loads of one start of a server."""

    def load(work: Callable[[HotLoads], Awaitable[None]], over: Any = None) -> None:
        async def run() -> None:
            async with SamplingServer("http://sampler", transport=over or transport) as server:
                await work(HotLoads(server, "sampler-test/1"))

        async_to_sync(run)()

    return load


async def nothing(_: HotLoad) -> None:
    pass


class Changing(httpx.AsyncBaseTransport):
    """The server, with its answers to one path changed."""

    def __init__(self, inner: httpx.AsyncBaseTransport, path: str, change: Change) -> None:
        self.inner, self.path, self.change = inner, path, change

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self.inner.handle_async_request(request)
        if request.url.path != self.path:
            return answer
        return self.change(json.loads(await answer.aread()))


def test_the_digest_of_a_file_is_what_the_trainer_says_of_its_tensors(saved: Saved) -> None:
    file = saved.home / "first" / "adapter_model.safetensors"
    found = trace_adapter(file)
    assert found == trace_tensors(load_file(file))
    assert found[0] == saved.first.digest


def test_a_file_that_is_no_adapter_is_said_to_be_unreadable(tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(b"\x02\0\0\0\0\0\0\0no")
    with pytest.raises(InvalidInput, match="cannot be read"):
        trace_adapter(file)


def test_a_load_is_proven_by_what_the_server_makes_of_the_trainers_probe(
    load: Load, checkpoint: Checkpoint
) -> None:
    async def work(loads: HotLoads) -> None:
        await loads.use(checkpoint, nothing)

    load(work)
    row = HotLoad.objects.get()
    assert (row.status, row.digest) == (Status.READY, checkpoint.digest)
    assert row.adapter_name == f"{checkpoint.pk}-{checkpoint.digest[:8]}-1"
    assert row.server_logprobs == pytest.approx(checkpoint.probe["logprobs"], abs=1e-4)
    assert row.max_difference is not None
    assert row.max_difference <= 1e-4
    assert row.load_milliseconds is not None
    assert row.probe_milliseconds is not None
    assert row.load_milliseconds > 0
    assert row.probe_milliseconds > 0


def test_weights_that_answer_otherwise_than_the_trainer_are_not_served(
    load: Load, save: Callable[..., Checkpoint], saved: Saved
) -> None:
    """The right files, and the probe of another adapter: as if the server had mixed them up."""
    probe = {"tokens": saved.second.probe.tokens, "logprobs": saved.second.probe.logprobs}
    checkpoint = save("first", probe=probe)

    async def work(loads: HotLoads) -> None:
        with pytest.raises(LoadFailed, match="differ from the trainer's"):
            await loads.use(checkpoint, nothing)
        with pytest.raises(ModelMissing):
            await loads.server.unload_adapter(f"{checkpoint.pk}-{checkpoint.digest[:8]}-1")

    load(work)
    row = HotLoad.objects.get()
    assert row.status == Status.FAILED
    assert row.max_difference is not None
    assert row.max_difference > 1e-3


def test_files_that_were_changed_are_not_even_loaded(
    load: Load, save: Callable[..., Checkpoint]
) -> None:
    checkpoint = save("first", digest="0" * 64)

    async def work(loads: HotLoads) -> None:
        with pytest.raises(LoadFailed, match="changed on disk"):
            await loads.use(checkpoint, nothing)

    load(work)
    assert HotLoad.objects.get().load_milliseconds is None


def test_a_server_that_scores_nothing_proves_nothing(
    load: Load, checkpoint: Checkpoint, transport: httpx.AsyncBaseTransport
) -> None:
    def forget_scores(answer: dict[str, Any]) -> httpx.Response:
        return httpx.Response(200, json=answer | {"prompt_logprobs": [None]})

    async def work(loads: HotLoads) -> None:
        with pytest.raises(LoadFailed, match="no finite log-probabilities"):
            await loads.use(checkpoint, nothing)

    load(work, over=Changing(transport, "/inference/v1/generate", forget_scores))
    assert HotLoad.objects.get().status == Status.FAILED


def test_a_checkpoint_without_a_probe_is_not_served(
    load: Load, save: Callable[..., Checkpoint]
) -> None:
    checkpoint = save("first", probe={})

    async def work(loads: HotLoads) -> None:
        with pytest.raises(LoadFailed, match="without a probe"):
            await loads.use(checkpoint, nothing)

    load(work)
    assert HotLoad.objects.get().status == Status.FAILED


def test_a_failed_load_is_not_repeated_for_every_call(
    load: Load, save: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save("first", digest="0" * 64)
    counts: list[int] = []

    async def try_once(loads: HotLoads) -> None:
        with pytest.raises(LoadFailed):
            await loads.use(checkpoint, nothing)
        counts.append(await in_database(HotLoad.objects.count))

    async def work(loads: HotLoads) -> None:
        await try_once(loads)
        await try_once(loads)
        monkeypatch.setattr(hotload, "RETRY_SECONDS", 0.0)
        await try_once(loads)

    load(work)
    assert counts == [1, 1, 2]


def test_what_the_server_has_dropped_is_loaded_again_under_a_new_name(
    load: Load, checkpoint: Checkpoint
) -> None:
    async def work(loads: HotLoads) -> None:
        first, _ = await loads.use(checkpoint, nothing)
        await loads.server.unload_adapter(first.adapter_name)

        async def ask(load: HotLoad) -> None:
            await loads.server.unload_adapter(load.adapter_name)

        second, _ = await loads.use(checkpoint, ask)
        assert second.adapter_name != first.adapter_name

    load(work)
    second, first = HotLoad.objects.all()
    assert (first.status, second.status) == (Status.LOST, Status.READY)


def test_the_longest_unused_checkpoint_makes_room(
    load: Load, save: Callable[..., Checkpoint]
) -> None:
    first, second = save("first"), save("second")
    names: list[list[str]] = []

    async def work(loads: HotLoads) -> None:
        loads.max_loaded = 1
        for checkpoint in (first, second, first):
            await loads.use(checkpoint, nothing)
            names.append(loads.names)

    load(work)
    assert [len(each) for each in names] == [1, 1, 1]
    assert len({each[0] for each in names}) == 3
    statuses = list(HotLoad.objects.order_by("id").values_list("status", flat=True))
    assert statuses == [Status.LOST, Status.LOST, Status.READY]


def test_two_loads_at_once_make_room_beside_each_other(
    load: Load, save: Callable[..., Checkpoint]
) -> None:
    held = [save("first"), save("second"), save("third", path="second")]
    wanted = [save("fourth", path="second"), save("fifth", path="second")]

    async def work(loads: HotLoads) -> None:
        for checkpoint in held:
            await loads.use(checkpoint, nothing)
        loads.max_loaded = 1
        await asyncio.gather(*(loads.use(checkpoint, nothing) for checkpoint in wanted))
        assert loads.loaded.keys() == {checkpoint.pk for checkpoint in wanted}

    load(work)
    ready = HotLoad.objects.filter(status=Status.READY)
    assert {row.checkpoint for row in ready} == set(wanted)


def test_two_adapters_of_one_base_are_each_proven_as_themselves(
    load: Load, save: Callable[..., Checkpoint]
) -> None:
    first, second = save("first"), save("second")

    async def work(loads: HotLoads) -> None:
        await loads.use(first, nothing)
        await loads.use(second, nothing)

    load(work)
    one, other = HotLoad.objects.all()
    assert (one.status, other.status) == (Status.READY, Status.READY)
    assert one.server_logprobs != pytest.approx(other.server_logprobs, abs=1e-2)
