"""One poll for all samples of a sampling client: no event missed, none of others, no threads."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection
from django.utils.timezone import now

from tests.webapp.cast import make_actor, make_base_model
from tests.webapp.tinker.conftest import Program
from webapp.core.threads import Scope
from webapp.deployments import abandoned, calls
from webapp.deployments.models import SamplingCall, SamplingSession
from webapp.runs.models import Session
from webapp.runs.services import finish_session
from webapp.tinker import futures
from webapp.tinker.futures import ParkedSamplers
from webapp.wire import door
from webapp.wire.waiting import ParkedPolls

pytestmark = pytest.mark.django_db(transaction=True)

CLONE = calls.CLONE


class World:
    """A sampling session whose calls wait, and a sampler that ends them."""

    def __init__(self) -> None:
        self.program = Program(make_actor("alice"))
        self.stranger = Program(make_actor("carol"))
        actor = self.program.actor
        self.base_model = make_base_model()
        self.session = Session.objects.create(project=actor.project, user=actor.user)
        self.sampler = calls.open_sampling_session(
            session=self.session, seq_id=0, base_model=self.base_model
        )

    def submit(self, seq_id: int) -> SamplingCall:
        return calls.submit_call(
            project=self.program.actor.project,
            purpose="tinker",
            base_model=self.base_model,
            sampling_session=self.sampler,
            seq_id=seq_id,
            payload={"prompt": [1], "num_samples": 1},
        )

    def take(self) -> SamplingCall:
        (call,) = calls.claim_calls(worker="w", limit=1)
        return call

    def finish(self, result: bytes = b"abc") -> None:
        calls.finish_call(self.take(), worker="w", result=result, content_type="x")

    def fail(self) -> None:
        calls.fail_call(self.take(), worker="w", error="Too long.", category="user")


@pytest.fixture
def world(db: None) -> World:
    return World()


@pytest.fixture
async def samplers() -> AsyncIterator[ParkedSamplers]:
    parked = ParkedSamplers(hold_seconds=20)
    yield parked
    await close(parked)


async def close(parked: door.Door) -> None:
    await parked.look(lambda _: connection.close(), None)
    parked.threads.shutdown()


async def ask(parked: door.Door, program: Program | None, body: bytes) -> tuple[int, Any]:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: Any) -> None:
        sent.append(event)

    headers = [(b"x-api-key", program.secret.encode())] if program else []
    scope: Scope = {"type": "http", "method": "POST", "path": futures.PATH, "headers": headers}
    await parked(scope, receive, send)
    start, end = sent
    return start["status"], json.loads(end["body"])


async def poll(
    parked: ParkedSamplers,
    world: World,
    cursor: int = 0,
    clone: int = 0,
    program: Program | None = None,
    **fields: Any,
) -> tuple[int, Any]:
    target = {
        "type": "sampling_session",
        "sampling_session_id": world.sampler.pk,
        "cloned_sampler_id": clone,
    }
    body = {"target": target, "prev_cursor": cursor, "retrieved_request_ids": []} | fields
    return await ask(parked, program or world.program, json.dumps(body).encode())


async def park(parked: ParkedSamplers, world: World, **options: Any) -> asyncio.Task[Any]:
    task = asyncio.create_task(poll(parked, world, **options))
    while not parked.waiting or not await is_parked(parked):
        await asyncio.sleep(0.01)
    return task


async def is_parked(parked: ParkedSamplers) -> bool:
    """Every look that was asked for before is over: each thread is here at the same time."""
    all_here = threading.Barrier(door.NUM_THREADS)
    looks = [parked.look(lambda _: all_here.wait(20), None) for _ in range(door.NUM_THREADS)]
    return len(await asyncio.gather(*looks)) == door.NUM_THREADS


async def test_what_has_ended_is_told_once_with_its_size(
    world: World, samplers: ParkedSamplers
) -> None:
    done, failed, waiting = [await sync_to_async(world.submit)(seq) for seq in range(3)]
    await sync_to_async(world.finish)(b"four")
    await sync_to_async(world.fail)()
    status, answer = await poll(samplers, world)
    assert (status, answer["cursor"]) == (200, 2)
    assert answer["completions"] == [
        {
            "state": "finished",
            "request_id": done.request_id,
            "response_payload_uncompressed_size": 4,
        },
        {"state": "failed", "request_id": failed.request_id},
    ]
    assert await poll(samplers, world, cursor=2, timeout=0.0) == (
        200,
        {"completions": [], "cursor": 2},
    )
    assert await poll(samplers, world, cursor=1, timeout=0) == (
        200,
        {"completions": answer["completions"][1:], "cursor": 2},
    )
    assert waiting.request_id not in json.dumps(answer)


async def test_a_parked_poll_is_woken_by_a_hint(world: World, samplers: ParkedSamplers) -> None:
    call = await sync_to_async(world.submit)(0)
    task = await park(samplers, world)
    await sync_to_async(world.finish)()
    assert not task.done()
    await samplers.wake(world.sampler.pk)
    _, answer = await task
    assert [each["request_id"] for each in answer["completions"]] == [call.request_id]
    assert samplers.waiting == {}


async def test_the_sweep_finds_what_no_hint_told(world: World, samplers: ParkedSamplers) -> None:
    await sync_to_async(world.submit)(0)
    task = await park(samplers, world)
    await samplers.sweep()
    assert not task.done()
    await sync_to_async(world.finish)()
    await samplers.sweep()
    assert (await task)[1]["cursor"] == 1


async def test_a_poll_that_waited_long_enough_is_an_empty_answer(world: World) -> None:
    parked = ParkedSamplers(hold_seconds=0.05)
    assert await poll(parked, world) == (200, {"completions": [], "cursor": 0})
    assert parked.waiting == {}
    await close(parked)


async def test_copies_of_a_client_hear_of_their_own_samples_alone(
    world: World, samplers: ParkedSamplers
) -> None:
    original = await sync_to_async(world.submit)(5)
    copied = await sync_to_async(world.submit)(3 * CLONE + 5)
    task = await park(samplers, world, clone=3)
    await sync_to_async(world.finish)()
    await samplers.wake(world.sampler.pk)
    assert await is_parked(samplers)
    assert not task.done()
    assert list(samplers.waiting[world.sampler.pk].values()) == [1]
    await sync_to_async(world.finish)()
    await samplers.wake(world.sampler.pk)
    _, answer = await task
    assert [each["request_id"] for each in answer["completions"]] == [copied.request_id]
    _, answer = await poll(samplers, world)
    assert [each["request_id"] for each in answer["completions"]] == [original.request_id]
    assert answer["cursor"] == 2


async def test_no_event_is_missed_or_told_twice_while_calls_end_between_polls(
    world: World, samplers: ParkedSamplers
) -> None:
    wanted = [(await sync_to_async(world.submit)(seq)).request_id for seq in range(30)]
    heard: list[str] = []
    cursor = 0
    for num_ended in (1, 4, 0, 7, 2, 16, 0):
        for _ in range(num_ended):
            await sync_to_async(world.finish)()
        _, answer = await poll(samplers, world, cursor=cursor, timeout=0)
        assert answer["cursor"] == cursor + num_ended
        cursor = answer["cursor"]
        heard += [each["request_id"] for each in answer["completions"]]
    assert heard == wanted


async def test_a_full_page_ends_with_all_of_its_last_number(
    world: World, samplers: ParkedSamplers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(futures, "MOST_AT_ONCE", 3)
    for seq in range(7):
        await sync_to_async(world.submit)(seq)
    for _ in range(2):
        await sync_to_async(world.finish)()
    await sync_to_async(Session.objects.update)(heartbeat_at=now() - timedelta(minutes=5))
    assert await sync_to_async(abandoned.drop_lost)() == 5
    _, answer = await poll(samplers, world)
    assert (len(answer["completions"]), answer["cursor"]) == (7, 3)
    _, answer = await poll(samplers, world, cursor=1)
    assert (len(answer["completions"]), answer["cursor"]) == (6, 3)


async def test_the_samples_of_a_client_that_comes_back_are_to_be_asked_for_again(
    world: World, samplers: ParkedSamplers
) -> None:
    call = await sync_to_async(world.submit)(0)
    task = await park(samplers, world)
    await sync_to_async(Session.objects.update)(heartbeat_at=now() - timedelta(minutes=5))
    await sync_to_async(abandoned.drop_lost)()
    await samplers.sweep()
    failed = {"state": "failed", "request_id": call.request_id}
    assert (await task)[1] == {"completions": [failed], "cursor": 1}
    polls = ParkedPolls(hold_seconds=1)
    body = json.dumps({"request_id": call.request_id}).encode()
    status, answer = await ask(polls, world.program, body)
    assert (status, "ask for them again" in answer["detail"]) == (410, True)
    await close(polls)


async def test_a_session_that_ended_leaves_nobody_waiting(
    world: World, samplers: ParkedSamplers
) -> None:
    call = await sync_to_async(world.submit)(0)
    task = await park(samplers, world)
    await sync_to_async(finish_session)(world.session, reason="success")
    await sync_to_async(abandoned.cancel_unwanted)()
    await samplers.sweep()
    failed = {"state": "failed", "request_id": call.request_id}
    assert (await task)[1]["completions"] == [failed]
    status, answer = await poll(samplers, world, cursor=1)
    assert (status, "has ended" in answer["detail"]) == (410, True)
    assert (await poll(samplers, world, cursor=1, timeout=0))[0] == 200


async def test_a_number_of_another_database_begins_anew(
    world: World, samplers: ParkedSamplers
) -> None:
    await sync_to_async(world.submit)(0)
    await sync_to_async(world.finish)()
    _, answer = await poll(samplers, world, cursor=2**63 - 1)
    assert (len(answer["completions"]), answer["cursor"]) == (1, 1)


async def test_unknown_and_foreign_sampling_sessions_do_not_exist(
    world: World, samplers: ParkedSamplers
) -> None:
    assert (await poll(samplers, world, program=world.stranger))[0] == 404
    target = {"sampling_session_id": "sam-nothing"}
    assert (await poll(samplers, world, target=target))[0] == 404
    assert (await ask(samplers, None, b"{}"))[0] == 401
    assert samplers.waiting == {}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prev_cursor": -1}, "prev_cursor"),
        ({"prev_cursor": "1"}, "prev_cursor"),
        ({"prev_cursor": 2**63}, "prev_cursor"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": "soon"}, "timeout"),
        ({"timeout": 1e400}, "timeout"),
        ({"retrieved_request_ids": "call-1"}, "retrieved_request_ids"),
        ({"target": {}}, "target.sampling_session_id"),
        ({"target": {"type": "run", "sampling_session_id": "x"}}, "target.type"),
        (
            {"target": {"sampling_session_id": "x", "cloned_sampler_id": 2**62}},
            "cloned_sampler_id",
        ),
    ],
)
async def test_a_field_of_the_wrong_kind_is_refused_by_name(
    world: World, samplers: ParkedSamplers, fields: dict[str, Any], said: str
) -> None:
    status, answer = await poll(samplers, world, **fields)
    assert (status, said in answer["detail"]) == (400, True)


async def test_a_database_that_does_not_answer_is_worth_another_try(
    world: World, samplers: ParkedSamplers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> Any:
        raise DatabaseError

    monkeypatch.setattr(futures, "read_news", fail)
    assert (await poll(samplers, world))[0] == 503
    monkeypatch.setattr(futures, "read_states", fail)
    samplers.waiting["sam-1"] = {}
    await samplers.sweep()


async def test_100_parked_polls_cost_no_threads(world: World, samplers: ParkedSamplers) -> None:
    def open_more() -> None:
        SamplingSession.objects.bulk_create(
            SamplingSession(
                pk=f"sam-{seq}",
                project=world.session.project,
                session=world.session,
                seq_id=seq,
                base_model=world.base_model,
            )
            for seq in range(1, 101)
        )

    await sync_to_async(open_more)()
    before = threading.active_count()
    tasks = [
        asyncio.create_task(poll(samplers, world, target={"sampling_session_id": f"sam-{seq}"}))
        for seq in range(1, 101)
    ]
    while len(samplers.waiting) < 100 or not await is_parked(samplers):
        await asyncio.sleep(0.01)
    assert threading.active_count() - before <= 5
    for sampler_id in list(samplers.waiting):
        assert list(samplers.waiting[sampler_id].values()) == [0]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert samplers.waiting == {}
