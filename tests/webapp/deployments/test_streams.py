"""Answers that are followed: pieces, the result, lost messages, watchers who leave."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import IntegrityError, connection

from tests.webapp.cast import make_actor, make_base_model
from tests.webapp.deployments.conftest import FIRST, RESULT, SECOND
from webapp.accounts.models import Actor
from webapp.core.errors import UserError
from webapp.deployments import calls
from webapp.deployments.models import SamplingCall
from webapp.deployments.pieces import Piece, write_pieces
from webapp.deployments.streams import NUM_THREADS, Ended, Follower, Streams, read_ended
from webapp.fleet.models import BaseModel

pytestmark = pytest.mark.django_db(transaction=True)
WORKER = "sampler-test"


class World:
    """Somebody who asks, and a sampler that answers."""

    def __init__(self) -> None:
        self.actor: Actor = make_actor("alice")
        self.base_model: BaseModel = make_base_model()

    def make(self) -> SamplingCall:
        return SamplingCall(
            project=self.actor.project,
            purpose=SamplingCall.Purpose.OPENAI,
            base_model=self.base_model,
            payload={"text": "Hello"},
            is_streamed=True,
        )

    def submit(self) -> SamplingCall:
        call = self.make()
        calls.submit_calls([call])
        return call

    def finish(self, **columns: Any) -> None:
        for call in calls.claim_calls(worker=WORKER, limit=200):
            result = json.dumps(columns.get("result", RESULT)).encode()
            calls.finish_call(call, worker=WORKER, result=result, content_type="application/json")

    def fail(self) -> None:
        for call in calls.claim_calls(worker=WORKER, limit=200):
            calls.fail_call(call, worker=WORKER, error="It broke.", category="server")


@pytest.fixture
def world(db: None) -> World:
    return World()


@pytest.fixture
async def streams() -> AsyncIterator[Streams]:
    streams = Streams()
    yield streams
    all_here = threading.Barrier(NUM_THREADS)
    closing = [streams.look(close, all_here) for _ in range(NUM_THREADS)]
    await asyncio.gather(*closing)
    streams.threads.shutdown()


def close(all_here: threading.Barrier) -> None:
    """Each thread has its own connection."""
    all_here.wait(20)
    connection.close()


async def begin(streams: Streams, world: World) -> Follower:
    (follower,) = await streams.submit(lambda: [world.make()])
    return follower


def say(streams: Streams, follower: Follower, *pieces: Piece) -> None:
    message = write_pieces((follower.request_id, piece) for piece in pieces)
    streams.hear(message.decode())


async def collect(streams: Streams, follower: Follower) -> tuple[list[Piece], Ended]:
    news = [each async for each in streams.follow(follower)]
    assert isinstance(news[-1], Ended)
    return [each for each in news if isinstance(each, Piece)], news[-1]


async def test_pieces_come_as_they_are_made_and_the_result_ends_them(
    world: World, streams: Streams
) -> None:
    follower = await begin(streams, world)
    news = streams.follow(follower)
    say(streams, follower, FIRST)
    assert await anext(news) == FIRST
    say(streams, follower, SECOND)
    assert await anext(news) == SECOND
    await sync_to_async(world.finish)()
    await streams.wake(follower.request_id)
    ended = await anext(news)
    assert isinstance(ended, Ended)
    assert (ended.is_done, ended.result) == (True, RESULT)
    with pytest.raises(StopAsyncIteration):
        await anext(news)
    assert streams.followers == {}


async def test_a_result_without_any_piece_is_told_as_one(world: World, streams: Streams) -> None:
    follower = await begin(streams, world)
    await sync_to_async(world.finish)()
    await streams.sweep()
    (piece,), ended = await collect(streams, follower)
    assert (piece.text, piece.tokens, ended.status) == ("Hi you", [5, 6], "done")


async def test_a_lost_message_is_made_up_for_by_the_result(world: World, streams: Streams) -> None:
    follower = await begin(streams, world)
    say(streams, follower, SECOND)
    await sync_to_async(world.finish)()
    await streams.wake(follower.request_id)
    pieces, _ = await collect(streams, follower)
    assert "".join(piece.text for piece in pieces) == "Hi you"


async def test_a_call_that_has_ended_already_is_read_at_once(
    world: World, streams: Streams
) -> None:
    call = await sync_to_async(world.submit)()
    await sync_to_async(world.fail)()
    ended = await streams.wait(await streams.find(call.pk))
    assert (ended.status, ended.error, ended.category) == ("failed", "It broke.", "server")


async def test_a_call_whose_row_is_gone_ends_too(streams: Streams) -> None:
    ended = await streams.wait(await streams.find(12345))
    assert (ended.status, ended.is_done) == ("cancelled", False)


async def test_a_result_that_is_no_json_fails_its_call_and_no_other(
    world: World, streams: Streams
) -> None:
    broken = await begin(streams, world)
    await sync_to_async(world.finish)(result={"sequences": [], "prompt_logprobs": [float("nan")]})
    whole = await begin(streams, world)
    await sync_to_async(world.finish)()
    await streams.sweep()
    assert (await streams.wait(whole)).is_done
    ended = await streams.wait(broken)
    assert (ended.status, ended.category, ended.result) == ("failed", "server", {})
    assert "not finite" in ended.error


async def test_a_call_that_is_not_committed_yet_is_not_taken_for_gone(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = streams.expect(12345)
    await streams.sweep()
    assert streams.delivery is not None
    await streams.delivery
    assert follower.ended is None
    monkeypatch.setattr("webapp.deployments.streams.LONGEST_COMMIT_SECONDS", 0)
    await streams.sweep()
    assert (await streams.wait(follower)).is_gone


async def test_a_refused_call_leaves_no_row_and_no_follower(world: World, streams: Streams) -> None:
    def make() -> list[SamplingCall]:
        raise UserError("No.")

    with pytest.raises(UserError):
        await streams.submit(make)
    with pytest.raises(IntegrityError):  # the second of two
        await streams.submit(lambda: [world.make(), SamplingCall(payload={})])
    assert await SamplingCall.objects.acount() == 0
    assert streams.followers == {}


async def test_nothing_is_locked_while_it_is_looked_up_what_a_request_means(
    world: World, streams: Streams
) -> None:
    inside: list[bool] = []

    def make() -> list[SamplingCall]:
        inside.append(connection.in_atomic_block)
        return [world.make()]

    await streams.submit(make)
    assert inside == [False]


async def test_who_leaves_cancels_the_call(world: World, streams: Streams) -> None:
    follower = await begin(streams, world)
    await streams.cancel(follower)
    call = await SamplingCall.objects.aget(pk=follower.call_id)
    assert (call.status, streams.followers) == ("cancelled", {})


async def test_a_hundred_who_wait_take_no_thread_and_one_look(
    world: World, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    followers = await streams.submit(lambda: [world.make() for _ in range(100)])
    await sync_to_async(lambda: None)()  # whose thread is there from its first use on
    before = threading.active_count()
    waits = [asyncio.create_task(streams.wait(follower)) for follower in followers]
    await sync_to_async(world.finish)()
    looks: list[object] = []
    look = streams.look

    async def count(read: Any, *arguments: Any) -> Any:
        looks.append(read)
        return await look(read, *arguments)

    monkeypatch.setattr(streams, "look", count)
    assert threading.active_count() == before
    for follower in followers:
        await streams.wake(follower.request_id)
    answered = await asyncio.gather(*waits)
    assert [ended.is_done for ended in answered] == [True] * 100
    assert looks == [read_ended]
