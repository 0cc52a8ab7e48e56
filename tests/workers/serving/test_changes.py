"""Calls of a deployment are answered by what it serves, while other weights are proven."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync

from tests.workers.serving.conftest import finish, open_sampler, start_replica
from training.errors import InvalidInput
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import services
from webapp.deployments.models import Deployment, DeploymentChange, HotLoad, SamplingCall
from workers import changes
from workers.hotload import MAX_LOADED, in_database
from workers.sampler import Sampler
from workers.vllm_process import Room

Status = DeploymentChange.Status
Scene = Callable[[Sampler], Awaitable[None]]
MESSAGES = [{"role": "user", "content": "Hello"}]
PARAMS = {"max_tokens": 4, "temperature": 0.0}


class Holding(httpx.AsyncBaseTransport):
    """The server, where what generates for a checkpoint waits until it is let go."""

    def __init__(self, inner: httpx.AsyncBaseTransport, held: Checkpoint) -> None:
        self.inner, self.held = inner, held.pk
        self.reached, self.let_go = asyncio.Event(), asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = request.content.decode()
        is_call = request.url.path == "/inference/v1/generate" and "prompt_logprobs" not in body
        if is_call and self.held in body:
            self.reached.set()
            await self.let_go.wait()
        return await self.inner.handle_async_request(request)


@pytest.fixture
def first(save: Callable[..., Checkpoint]) -> Checkpoint:
    return save("first")


@pytest.fixture
def second(save: Callable[..., Checkpoint]) -> Checkpoint:
    return save("second")


@pytest.fixture
def deployment(alice: Actor, first: Checkpoint, work: Callable[..., None]) -> Deployment:
    """Ready with its first checkpoint."""
    deployment = services.create_deployment(actor=alice, name="support", checkpoint=first)
    work()
    return deployment


@pytest.fixture
def change(alice: Actor, deployment: Deployment) -> Callable[..., DeploymentChange]:
    def change(checkpoint: Checkpoint | None, transition: str = "") -> DeploymentChange:
        return services.change_checkpoint(
            actor=alice, deployment=deployment, checkpoint=checkpoint, transition=transition
        )

    return change


@pytest.fixture
def ask(alice: Actor, deployment: Deployment) -> Callable[[], SamplingCall]:
    def ask() -> SamplingCall:
        return services.ask(
            actor=alice, deployment=deployment, messages=MESSAGES, params=dict(PARAMS)
        )

    return ask


def play(transport: httpx.AsyncBaseTransport, scene: Scene) -> None:
    async def run() -> None:
        async with asyncio.timeout(30):
            async with open_sampler(transport) as sampler:
                await scene(sampler)

    async_to_sync(run)()


def read_digests(*calls: SamplingCall) -> list[str]:
    for call in calls:
        call.refresh_from_db()
        assert call.status == SamplingCall.Status.DONE, call.error
    return [call.hot_load.digest for call in calls if call.hot_load]


def test_a_change_is_loaded_proven_and_then_answers(
    deployment: Deployment, second: Checkpoint, change: Any, ask: Any, work: Any
) -> None:
    wish = change(second)
    work()
    wish.refresh_from_db()
    deployment.refresh_from_db()
    assert (wish.status, deployment.checkpoint) == (Status.SERVED, second)
    assert wish.pause_milliseconds == 0
    load = wish.hot_load
    assert load is not None
    assert (load.checkpoint, load.deployment) == (second, deployment)
    assert load.mean_difference <= load.max_difference <= 1e-4
    assert load.transfer_milliseconds > 0
    call = ask()
    work()
    assert read_digests(call) == [second.digest]


def test_weights_that_do_not_agree_are_refused_in_words_and_the_old_ones_answer_on(
    deployment: Deployment, first: Checkpoint, second: Checkpoint, change: Any, ask: Any, work: Any
) -> None:
    probe = {"tokens": second.probe["tokens"], "logprobs": first.probe["logprobs"]}
    Checkpoint.objects.filter(pk=second.pk).update(probe=probe)
    wish, call = change(second), ask()
    work()
    wish.refresh_from_db()
    deployment.refresh_from_db()
    assert (wish.status, deployment.status) == (Status.FAILED, Deployment.Status.READY)
    assert "differ from the trainer's by up to" in wish.error
    assert "at its token" in wish.error
    assert (deployment.checkpoint, deployment.error) == (first, "")
    assert read_digests(call) == [first.digest]


def test_a_call_that_was_asked_before_is_answered_by_what_is_served_when_its_turn_comes(
    deployment: Deployment, second: Checkpoint, change: Any, ask: Any, work: Any
) -> None:
    call = ask()
    services.settle_change(change(second))
    work()
    assert read_digests(call) == [second.digest]
    assert call.checkpoint == second


def test_new_calls_are_answered_by_the_new_weights_while_old_ones_end_on_theirs(
    first: Checkpoint, second: Checkpoint, change: Any, ask: Any, transport: Any
) -> None:
    old: SamplingCall = ask()
    new: list[SamplingCall] = []

    async def scene(sampler: Sampler) -> None:
        await sampler.run_once()
        await held.reached.wait()
        await in_database(change, second, "async")
        await sampler.run_once()
        await asyncio.gather(*sampler.changes.tasks.values())
        new.append(await in_database(ask))
        await sampler.run_once()
        await sampler.tasks[new[0].pk]
        held.let_go.set()
        await finish(sampler)

    held = Holding(transport, first)
    play(held, scene)
    assert read_digests(old, *new) == [first.digest, second.digest]


def test_a_change_that_drains_waits_for_the_old_ones_and_holds_back_only_its_own_new_ones(
    first: Checkpoint,
    second: Checkpoint,
    change: Any,
    ask: Any,
    alice: Actor,
    transport: Any,
    deployment: Deployment,
) -> None:
    old: SamplingCall = ask()
    held_back: list[SamplingCall] = []
    wishes: list[DeploymentChange] = []

    async def scene(sampler: Sampler) -> None:
        await sampler.run_once()
        await held.reached.wait()
        wishes.append(await in_database(change, second, "sync"))
        await sampler.run_once()
        while sampler.changes.gates[deployment.pk].is_open.is_set():
            await asyncio.sleep(0)
        held_back.append(await in_database(ask))
        other = await in_database(
            services.ask, actor=alice, checkpoint=second, messages=MESSAGES, params=dict(PARAMS)
        )
        await sampler.run_once()
        await sampler.tasks[other.pk]  # another tenant of the same server is not held up
        assert held_back[0].pk not in sampler.tasks  # nor does it take a place that others need
        held.let_go.set()
        await finish(sampler)

    held = Holding(transport, first)
    play(held, scene)
    assert read_digests(old, *held_back) == [first.digest, second.digest]
    wishes[0].refresh_from_db()
    assert wishes[0].status == Status.SERVED
    assert (wishes[0].pause_milliseconds or 0) > 0


def test_of_two_changes_at_once_the_newer_one_is_served(
    deployment: Deployment, first: Checkpoint, second: Checkpoint, change: Any, work: Any
) -> None:
    overtaken, newer = change(second), change(first)
    work()
    for each in (overtaken, newer, deployment):
        each.refresh_from_db()
    assert (overtaken.status, newer.status) == (Status.SUPERSEDED, Status.SERVED)
    assert deployment.checkpoint == first


def test_a_change_that_is_overtaken_while_it_loads_is_not_served(
    deployment: Deployment, first: Checkpoint, second: Checkpoint, change: Any, transport: Any
) -> None:
    wishes: list[DeploymentChange] = []

    async def scene(sampler: Sampler) -> None:
        wishes.append(await in_database(change, second))
        await sampler.changes.begin()
        wishes.append(await in_database(change, first))
        await finish(sampler)

    play(transport, scene)
    for each in (*wishes, deployment):
        each.refresh_from_db()
    assert [each.status for each in wishes] == [Status.SUPERSEDED, Status.SERVED]
    assert deployment.checkpoint == first


def test_a_deployment_goes_back_to_the_base_model(
    deployment: Deployment, change: Any, ask: Any, work: Any
) -> None:
    wish = change(None)
    work()
    call = ask()
    work()
    wish.refresh_from_db()
    assert (wish.status, wish.hot_load) == (Status.SERVED, None)
    assert read_digests(call) == []


def test_a_server_that_is_lost_during_a_load_leaves_the_old_weights_and_the_next_start_goes_on(
    deployment: Deployment,
    first: Checkpoint,
    second: Checkpoint,
    change: Any,
    transport: httpx.AsyncBaseTransport,
    work: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Dying(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if (
                request.url.path == "/v1/load_lora_adapter"
                and second.pk in request.content.decode()
            ):
                raise httpx.ReadError("it is gone")
            return await transport.handle_async_request(request)

    monkeypatch.setattr(changes, "PAUSE_SECONDS", 0.0)
    wish = change(second)

    async def scene(sampler: Sampler) -> None:
        await sampler.changes.begin()
        await asyncio.gather(*sampler.changes.tasks.values())

    play(Dying(), scene)
    for each in (wish, deployment):
        each.refresh_from_db()
    assert (wish.status, deployment.checkpoint) == (Status.LOADING, first)
    work(start="2")
    wish.refresh_from_db()
    assert wish.status == Status.SERVED


def test_a_bug_is_one_changes_failure_and_not_the_samplers(
    deployment: Deployment,
    first: Checkpoint,
    second: Checkpoint,
    change: Any,
    ask: Any,
    transport: httpx.AsyncBaseTransport,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wish, call = change(second), ask()

    class Odd(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if second.pk in request.content.decode():
                return httpx.Response(200, json={"choices": None})
            return await transport.handle_async_request(request)

    play(Odd(), finish)
    wish.refresh_from_db()
    assert wish.status == Status.FAILED
    assert wish.error.startswith("Internal error")
    assert "TypeError" in caplog.text
    assert read_digests(call) == [first.digest]


def test_a_change_is_proven_on_every_ready_server_before_it_is_served(
    deployment: Deployment, second: Checkpoint, change: Any, transport: httpx.AsyncBaseTransport
) -> None:
    wish = change(second)

    async def scene(sampler: Sampler) -> None:
        await in_database(start_replica, "1", "another")
        await finish(sampler)

    play(transport, scene)
    wish.refresh_from_db()
    assert wish.status == Status.SERVED
    proven = HotLoad.objects.filter(checkpoint=second, status=HotLoad.Status.READY)
    assert {each.server for each in proven} == {"another/1", "built-in/1"}
    assert {each.replica.name for each in proven if each.replica} == {"another", "built-in"}


def test_one_server_that_does_not_agree_is_enough_to_keep_the_old_weights(
    deployment: Deployment,
    first: Checkpoint,
    second: Checkpoint,
    change: Any,
    ask: Any,
    transport: httpx.AsyncBaseTransport,
) -> None:
    wish = change(second)

    class Deaf(httpx.AsyncBaseTransport):
        """Of two servers one takes no adapters any more."""

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.host == "another" and request.url.path == "/v1/load_lora_adapter":
                return httpx.Response(400, json={"message": "there is no slot left"})
            return await transport.handle_async_request(request)

    async def scene(sampler: Sampler) -> None:
        await in_database(start_replica, "1", "another")
        await finish(sampler)

    play(Deaf(), scene)
    for each in (wish, deployment):
        each.refresh_from_db()
    assert (wish.status, wish.error) == (Status.FAILED, "there is no slot left")
    assert (deployment.status, deployment.checkpoint) == (Deployment.Status.READY, first)


def test_vllm_keeps_as_many_adapters_in_memory_as_are_loaded_at_most() -> None:
    assert Room().max_kept >= MAX_LOADED


def test_a_call_under_way_hears_that_its_deployment_was_deleted(
    transport: httpx.AsyncBaseTransport, alice: Actor, deployment: Deployment, ask: Any
) -> None:
    call = ask()

    async def draw(_: Checkpoint | None) -> None:
        raise AssertionError

    async def scene(sampler: Sampler) -> None:
        await in_database(services.delete_deployment, actor=alice, deployment=deployment)
        with pytest.raises(InvalidInput, match=r"The deployment was deleted\."):
            await sampler.changes.answer(call, draw)

    play(transport, scene)
