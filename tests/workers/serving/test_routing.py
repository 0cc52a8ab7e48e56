"""Calls spread over replicas: alike ones together, none on a server that cannot answer it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync

from tests.workers.serving.conftest import WORKER, finish, start_replica
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import calls, replicas, services
from webapp.deployments.models import Deployment, HotLoad, Replica, SamplingCall
from webapp.deployments.wanted import list_wanted
from webapp.fleet.models import BaseModel, BaseModelName, Worker
from workers.hotload import in_database
from workers.sampler import MAX_LOSSES, Sampler
from workers.starts import choose_start, weigh
from workers.vllm import SamplingServer

Status = SamplingCall.Status
DEADLINE = 30.0
NAMES = ("one", "two", "three")


class Network(httpx.AsyncBaseTransport):
    """Several servers by their hosts' names. A test kills one in mid-sample, or lets it hang."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner = inner
        self.gone: set[str] = set()
        self.silent: set[str] = set()
        self.closed: set[str] = set()
        self.asked: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host, is_call = request.url.host, request.url.path == "/inference/v1/generate"
        if is_call:
            self.asked.append(host)
        if host in self.closed:
            raise httpx.ConnectError("nobody listens")
        if host in self.gone and is_call:
            raise httpx.ReadError("it was killed")
        if host in self.silent and is_call:
            await asyncio.Future()
        return await self.inner.handle_async_request(request)


@pytest.fixture
def network(transport: httpx.AsyncBaseTransport) -> Network:
    return Network(transport)


@asynccontextmanager
async def open_sampler(network: Network, worker: str = WORKER) -> AsyncIterator[Sampler]:
    def connect(url: str) -> SamplingServer:
        return SamplingServer(url, transport=network)

    sampler = Sampler(worker=worker, connect=connect, leads=True)
    await sampler.begin()
    yield sampler
    await sampler.stop()


@pytest.fixture
def submit(alice: Actor, base_model: BaseModel) -> Callable[..., SamplingCall]:
    def submit(*prompt: int, **columns: Any) -> SamplingCall:
        params = {"max_tokens": 2, "temperature": 0.0, "seed": 1}
        defaults: dict[str, Any] = {
            "project": alice.project,
            "purpose": SamplingCall.Purpose.REST,
            "base_model": base_model,
            "payload": {"prompt": list(prompt or (1, 5)), "num_samples": 1, "params": params},
        }
        return calls.submit_call(**defaults | columns)

    return submit


def answer_all(network: Network) -> None:
    async def run() -> None:
        async with open_sampler(network) as sampler:
            await finish(sampler)

    async_to_sync(run)()


def are_done() -> bool:
    return not SamplingCall.objects.exclude(status=Status.DONE).exists()


def test_prompts_that_begin_alike_go_to_one_replica_and_different_ones_spread(
    network: Network, submit: Any
) -> None:
    for name in NAMES:
        start_replica(name=name)
    for _ in range(4):
        submit(1, 5, 9)
        answer_all(network)
    assert len(set(network.asked)) == 1
    for number in range(40):
        submit(1, 5, number + 1)
    answer_all(network)
    assert {name: network.asked.count(name) > 4 for name in NAMES} == dict.fromkeys(NAMES, True)
    assert are_done()


def test_many_alike_prompts_at_once_do_not_wait_for_one_busy_replica(
    network: Network, submit: Any
) -> None:
    for name in NAMES:
        start_replica(name=name)
    for _ in range(30):
        submit(1, 5, 9)

    async def take() -> None:
        async with open_sampler(network) as sampler:
            await sampler.run_once()
            counts.update({each.replica.name: len(each.calls) for each in sampler.starts.values()})

    counts: dict[str, int] = {}
    async_to_sync(take)()
    assert sum(counts.values()) == 30
    assert max(counts.values()) <= 13  # a quarter more than its share


def test_when_a_replica_goes_only_its_own_prompts_move() -> None:
    def find_first(key: str, names: tuple[str, ...]) -> str:
        return max(names, key=lambda name: weigh(key, name))

    for number in range(50):
        first = find_first(str(number), NAMES)
        if first != "two":
            assert find_first(str(number), ("one", "three")) == first


def test_calls_of_a_replica_that_dies_are_answered_by_another(
    network: Network, submit: Any
) -> None:
    for name in NAMES:
        start_replica(name=name)
    for number in range(12):
        submit(1, 5, number + 1)
    network.gone = {"one", "two"}
    answer_all(network)
    assert are_done()
    assert {"one", "two"} & set(network.asked)


def test_calls_outlast_a_server_whose_end_nobody_has_written_down(
    network: Network, submit: Any, checkpoint: Checkpoint
) -> None:
    """As where the supervisor was killed too: what never reached a server did not break it."""
    start_replica(name="one")
    both = [submit(), submit(checkpoint=checkpoint)]
    network.closed = {"one"}

    async def run() -> None:
        async with open_sampler(network) as sampler:
            for _ in range(2 * MAX_LOSSES):
                for start in sampler.starts.values():
                    start.paused_until = 0.0
                await sampler.run_once()
                await sampler.wait()
            await in_database(replicas.mark_lost, "one", start="1", error="It ended.")
            network.closed = set()
            await in_database(start_replica, "2", "one")
            await sampler.meet_replicas()
            await finish(sampler)

    async_to_sync(run)()
    for call in both:
        call.refresh_from_db()
        assert call.status == Status.DONE


def test_calls_of_a_replica_that_hangs_are_answered_by_another_once_it_is_said_to_be_lost(
    network: Network, submit: Any
) -> None:
    start_replica(name="one")
    network.silent = {"one"}
    call = submit()

    async def run() -> None:
        async with open_sampler(network) as sampler:
            await sampler.run_once()
            async with asyncio.timeout(DEADLINE):
                while not network.asked:
                    await asyncio.sleep(0.01)
            await in_database(replicas.mark_lost, "one", start="1", error="It hangs.")
            await in_database(start_replica, name="two")
            while sampler.tasks:
                await sampler.run_once()
                await sampler.wait()
            await finish(sampler)

    async_to_sync(run)()
    call.refresh_from_db()
    assert (call.status, network.asked) == (Status.DONE, ["one", "two"])


def test_a_replica_that_stops_ends_what_it_is_at_and_gets_nothing_more(
    network: Network, submit: Any
) -> None:
    start_replica(name="one")
    first = submit()

    async def run() -> None:
        async with open_sampler(network) as sampler:
            await sampler.run_once()
            await in_database(replicas.mark_stopping, "one")
            await in_database(start_replica, name="two")
            await in_database(submit)
            await finish(sampler)
            assert not sampler.leaving

    async_to_sync(run)()
    first.refresh_from_db()
    assert (first.status, sorted(network.asked)) == (Status.DONE, ["one", "two"])


def test_calls_wait_for_a_server_of_their_base_model_and_hold_up_nobody(
    network: Network, submit: Any, base_model: BaseModel
) -> None:
    other = BaseModel.objects.create(path="/models/other")
    BaseModelName.objects.create(base_model=other, name="other")
    waits = [submit(base_model=other) for _ in range(3)]
    answered = submit()
    start_replica(name="vllm-tiny", engine="vllm", base_model=base_model)
    answer_all(network)
    answered.refresh_from_db()
    assert answered.status == Status.DONE
    for each in waits:
        each.refresh_from_db()
        assert (each.status, each.started_at) == (Status.QUEUED, None)


def test_a_model_of_all_weights_is_no_call_for_a_vllm_that_others_share(
    network: Network, submit: Any, base_model: BaseModel, save: Callable[..., Checkpoint]
) -> None:
    whole = submit(checkpoint=save(rank=0, type="base"))
    start_replica(name="vllm-tiny", engine="vllm", base_model=base_model)
    answer_all(network)
    whole.refresh_from_db()
    assert (whole.status, network.asked) == (Status.QUEUED, [])


def test_an_adapter_that_is_too_large_for_a_running_vllm_waits_for_its_next_start(
    network: Network,
    submit: Any,
    base_model: BaseModel,
    save: Callable[..., Checkpoint],
    settings: Any,
) -> None:
    settings.SERVING = "vllm"
    large = submit(checkpoint=save(rank=128))
    answered = submit()
    start_replica(name="vllm-tiny", engine="vllm", base_model=base_model, max_rank=64)
    answer_all(network)
    assert SamplingCall.objects.get(status=Status.DONE) == answered
    (wanted,) = (each for each in list_wanted() if each.base_model == base_model)
    assert wanted.max_rank == 128
    assert not wanted.fits(replace(wanted, max_rank=64))
    start_replica("2", "vllm-tiny", engine="vllm", base_model=base_model, max_rank=128)
    answer_all(network)
    large.refresh_from_db()
    assert large.status == Status.DONE


def test_a_checkpoint_that_two_samplers_serve_is_loaded_once_into_one_server(
    network: Network, submit: Any, checkpoint: Checkpoint
) -> None:
    start_replica(name="one")

    async def run() -> None:
        async with open_sampler(network) as first, open_sampler(network, "second") as second:
            for sampler in (first, second, first):
                await in_database(submit, checkpoint=checkpoint)
                await finish(sampler)

    async_to_sync(run)()
    assert are_done()
    assert HotLoad.objects.count() == 1


def test_one_sampler_alone_asks_a_server_whose_weights_are_exchanged_in_place(
    network: Network, submit: Any, alice: Actor, save: Callable[..., Checkpoint]
) -> None:
    whole = save(rank=0, type="base")
    deployment = services.create_deployment(actor=alice, name="whole", checkpoint=whole)
    start_replica(name="own", engine="vllm", base_model=whole.base_model, deployment=deployment)
    submit(checkpoint=whole)
    for name in ("a", "b"):
        Worker.objects.create(name=name, kind=Worker.Kind.SAMPLER)
    rooms: list[int] = []
    opened: list[bool] = []

    async def run() -> None:
        async with open_sampler(network, "b") as later:
            await later.beat()
            await later.run_once()
            rooms.append(sum(each.room for each in later.starts.values()))
            before = list(later.starts.values())
            await in_database(Worker.objects.filter(name="a").delete)
            await later.beat()
            await later.meet_replicas()
            rooms.append(sum(each.room for each in later.starts.values()))
            opened.append(before[0] not in later.starts.values())

    async_to_sync(run)()
    assert (rooms, opened) == ([0, 64], [True])
    assert SamplingCall.objects.get().started_at is None


def test_a_replica_is_known_to_be_used_before_its_first_call_ends(
    network: Network, submit: Any
) -> None:
    start_replica(name="one")
    submit()
    used: list[bool] = []

    async def run() -> None:
        async with open_sampler(network) as sampler:
            await sampler.run_once()
            used.append((await in_database(Replica.objects.get)).used_at is not None)

    async_to_sync(run)()
    assert used == [True]


def test_of_two_samplers_one_proves_what_a_deployment_serves(
    network: Network, alice: Actor, checkpoint: Checkpoint
) -> None:
    start_replica(name="one")
    services.create_deployment(actor=alice, name="support", checkpoint=checkpoint)
    for name in ("a", "b"):
        Worker.objects.create(name=name, kind=Worker.Kind.SAMPLER)
    proving: list[int] = []

    async def run() -> None:
        async with open_sampler(network, "b") as later, open_sampler(network, "a") as first:
            for sampler in (later, first):
                await sampler.beat()
                await sampler.run_once()
                proving.append(len(sampler.changes.tasks))
                await finish(sampler)

    async_to_sync(run)()
    assert proving == [0, 1]
    assert Deployment.objects.get().status == Deployment.Status.READY


def test_loads_of_a_sampler_that_was_killed_do_not_stay_on_their_way_for_ever(
    network: Network, checkpoint: Checkpoint
) -> None:
    row = {"checkpoint": checkpoint, "server": "one/1"}
    HotLoad.objects.create(adapter_name="a", status="loading", **row)

    async def begin() -> None:
        async with open_sampler(network):
            pass

    Worker.objects.create(name="other", kind=Worker.Kind.SAMPLER)
    async_to_sync(begin)()
    assert HotLoad.objects.get().status == HotLoad.Status.LOADING
    Worker.objects.all().delete()
    async_to_sync(begin)()
    assert HotLoad.objects.get().status == HotLoad.Status.LOST


def test_why_calls_find_no_server_is_told_by_base_model(
    network: Network, submit: Any, base_model: BaseModel
) -> None:
    submit()
    told = [replicas.explain_waits()]
    start_replica(name="one", start="1")
    told.append(replicas.explain_waits())
    replicas.mark_lost("one", start="1", error="The server ran out of memory.")
    told.append(replicas.explain_waits())
    pk = base_model.pk
    assert told == [
        {pk: "a sampling server is about to start for it"},
        {},
        {pk: "the sampling server one starts once more: The server ran out of memory."},
    ]


def test_a_call_goes_nowhere_where_nothing_has_started(submit: Any) -> None:
    assert choose_start([], submit()) is None
