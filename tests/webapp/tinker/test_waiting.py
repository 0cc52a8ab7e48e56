"""Parked polls: woken by a hint, found by the sweep, and free of threads while they wait."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from tests.webapp.cast import make_actor, make_base_model, make_run
from tests.webapp.tinker.conftest import Program
from webapp.core.threads import Scope
from webapp.fleet.capacity import Capacity, read_capacity
from webapp.fleet.models import Worker
from webapp.runs import queue
from webapp.runs.models import Operation, Run
from webapp.runs.retention import forget_logs
from webapp.wire import door, waiting
from webapp.wire.waiting import ParkedPolls

pytestmark = pytest.mark.django_db(transaction=True)


class World:
    """A run whose operations wait, and a worker that ends them."""

    def __init__(self) -> None:
        self.program = Program(make_actor("alice"))
        self.stranger = Program(make_actor("carol"))
        self.run: Run = make_run(self.program.actor, make_base_model())
        queue.lease_run(self.run, worker="w1")

    def submit(self, seq: int) -> str:
        return queue.submit_operation(self.run, seq=seq, kind="optim_step", payload=b"").request_id

    def finish(self, result: bytes = b'{"metrics": {}}') -> None:
        (operation,) = queue.next_operations(self.run, worker="w1")
        queue.finish_operation(
            operation, worker="w1", result=result, content_type="application/json"
        )

    def fail(self, error: str) -> None:
        (operation,) = queue.next_operations(self.run, worker="w1")
        queue.fail_operation(operation, worker="w1", error=error, category="user")


@pytest.fixture
def world(db: None) -> World:
    return World()


@pytest.fixture
async def polls() -> AsyncIterator[ParkedPolls]:
    parked = ParkedPolls(hold_seconds=20)
    yield parked
    await parked.look(lambda _: connection.close(), None)
    parked.threads.shutdown()


async def poll(
    polls: ParkedPolls, program: Program | None, request_id: Any, body: bytes | None = None
) -> tuple[int, str, bytes]:
    """Status, content type and body, as a client of the ASGI server would get them."""
    sent: list[Any] = []
    payload = json.dumps({"request_id": request_id}).encode() if body is None else body

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": payload, "more_body": False}

    async def send(event: Any) -> None:
        sent.append(event)

    headers = [(b"x-api-key", program.secret.encode())] if program else []
    scope: Scope = {"type": "http", "method": "POST", "path": waiting.PATH, "headers": headers}
    await polls(scope, receive, send)
    start, end = sent
    return start["status"], dict(start["headers"])[b"content-type"].decode(), end["body"]


async def park(polls: ParkedPolls, program: Program, request_id: str) -> asyncio.Task[Any]:
    task = asyncio.create_task(poll(polls, program, request_id))
    await all_parked(polls, [task])
    return task


async def all_parked(polls: ParkedPolls, tasks: list[asyncio.Task[Any]]) -> None:
    """A poll that was answered instead says so here: it would be waited for without end."""
    while len(polls.waiting) < len(tasks) or not await is_parked(polls):
        assert [task.result() for task in tasks if task.done()] == []
        await asyncio.sleep(0.01)


async def is_parked(polls: ParkedPolls) -> bool:
    """Every look that was asked for before is over: each thread is here at the same time."""
    all_here = threading.Barrier(door.NUM_THREADS)
    looks = [polls.look(lambda _: all_here.wait(20), None) for _ in range(door.NUM_THREADS)]
    return len(await asyncio.gather(*looks)) == door.NUM_THREADS


async def test_a_finished_result_is_returned_byte_for_byte(
    world: World, polls: ParkedPolls
) -> None:
    request_id = await sync_to_async(world.submit)(0)
    await sync_to_async(world.finish)(b'{"metrics":  {"x": 1}}')
    answer = await poll(polls, world.program, request_id)
    assert answer == (200, "application/json", b'{"metrics":  {"x": 1}}')
    assert await poll(polls, world.program, request_id) == answer


async def test_a_parked_poll_is_woken_by_a_hint(world: World, polls: ParkedPolls) -> None:
    request_id = await sync_to_async(world.submit)(0)
    task = await park(polls, world.program, request_id)
    await sync_to_async(world.finish)()
    assert not task.done()
    await polls.wake(request_id)
    assert (await task)[0] == 200
    assert polls.waiting == {}


async def test_the_sweep_finds_what_no_hint_told(world: World, polls: ParkedPolls) -> None:
    request_id = await sync_to_async(world.submit)(0)
    task = await park(polls, world.program, request_id)
    await polls.sweep()
    assert not task.done()
    await sync_to_async(world.finish)()
    await polls.sweep()
    assert (await task)[0] == 200


async def test_a_failed_operation_is_a_200_that_says_whose_fault_it_is(
    world: World, polls: ParkedPolls
) -> None:
    request_id = await sync_to_async(world.submit)(0)
    await sync_to_async(world.fail)("The learning rate is too high.")
    status, _, body = await poll(polls, world.program, request_id)
    failed = {"error": "The learning rate is too high.", "category": "user"}
    assert (status, json.loads(body)) == (200, failed)


async def test_a_poll_that_waited_long_enough_is_asked_to_try_again(world: World) -> None:
    polls = ParkedPolls(hold_seconds=0.05)
    request_id = await sync_to_async(world.submit)(0)
    status, _, body = await poll(polls, world.program, request_id)
    assert status == 408
    assert json.loads(body)["type"] == "try_again"
    assert json.loads(body)["request_id"] == request_id
    assert polls.waiting == {}
    await polls.look(lambda _: connection.close(), None)
    polls.threads.shutdown()


async def test_who_waits_for_a_worker_that_is_not_there_reads_why_at_the_cost_of_one_look(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def look() -> Capacity:
        looks.append(1)
        return read_capacity()

    monkeypatch.setattr(waiting, "read_capacity", look)
    polls = ParkedPolls(hold_seconds=0.05)
    request_ids = [await sync_to_async(world.submit)(seq) for seq in range(20)]
    answers = await asyncio.gather(*(poll(polls, world.program, each) for each in request_ids))
    for status, _, body in answers:
        assert status == 408
        assert json.loads(body)["queue_state"] == "paused_capacity"
        assert json.loads(body)["queue_state_reason"] == "waiting for a gpu worker: none is alive"
    assert looks == [1]
    await polls.look(lambda _: connection.close(), None)
    polls.threads.shutdown()


async def test_who_waits_for_its_turn_reads_that_all_is_well(world: World) -> None:
    polls = ParkedPolls(hold_seconds=0.05)
    await sync_to_async(Worker.objects.create)(name="w1", kind="gpu")
    request_id = await sync_to_async(world.submit)(0)
    _, _, body = await poll(polls, world.program, request_id)
    assert json.loads(body)["queue_state"] == "active"
    assert json.loads(body)["queue_state_reason"] is None
    behind = await sync_to_async(world.submit)(1)
    polls.lineup = None  # it is looked at again
    _, _, body = await poll(polls, world.program, behind)
    assert json.loads(body)["queue_state"] == "active"
    assert json.loads(body)["queue_state_reason"] == "1 operation of this run is ahead"
    await polls.look(lambda _: connection.close(), None)
    polls.threads.shutdown()


async def test_who_waits_for_a_number_that_has_not_arrived_reads_which(world: World) -> None:
    polls = ParkedPolls(hold_seconds=0.05)
    await sync_to_async(Worker.objects.create)(name="w1", kind="gpu")
    request_id = await sync_to_async(world.submit)(3)
    _, _, body = await poll(polls, world.program, request_id)
    assert json.loads(body)["queue_state"] == "paused_capacity"
    assert json.loads(body)["queue_state_reason"] == "waiting for seq_id 0, which has not arrived"
    await polls.look(lambda _: connection.close(), None)
    polls.threads.shutdown()


async def test_unknown_and_foreign_requests_do_not_exist(world: World, polls: ParkedPolls) -> None:
    request_id = await sync_to_async(world.submit)(0)
    assert (await poll(polls, world.stranger, request_id))[0] == 404
    for unknown in ("op-999999", "call-x", "nonsense", "op-" + "9" * 40):
        assert (await poll(polls, world.program, unknown))[0] == 404
    assert polls.waiting == {}


async def test_forgotten_samples_are_gone_and_not_unknown(world: World, polls: ParkedPolls) -> None:
    status, _, body = await poll(polls, world.program, "call-1")
    assert status == 410
    assert "ask for them again" in json.loads(body)["detail"]


async def test_a_forgotten_result_is_a_failure_in_a_sentence(
    world: World, polls: ParkedPolls
) -> None:
    request_id = await sync_to_async(world.submit)(0)
    await sync_to_async(world.finish)()
    await sync_to_async(Run.objects.update)(ended_at=now() - timedelta(days=2))
    assert await sync_to_async(forget_logs)() == 1
    status, _, body = await poll(polls, world.program, request_id)
    assert (status, json.loads(body)["category"]) == (200, "user")
    assert "kept for a day" in json.loads(body)["error"]
    assert (await poll(polls, world.stranger, request_id))[0] == 404


async def test_a_poll_needs_a_key_and_a_request_id(world: World, polls: ParkedPolls) -> None:
    assert (await poll(polls, None, "op-1"))[0] == 401
    world.program.secret = "tml-wrong"
    assert (await poll(polls, world.program, "op-1"))[0] == 401
    assert (await poll(polls, world.stranger, 5))[0] == 400
    assert (await poll(polls, world.stranger, "", b"{garbage"))[0] == 400
    assert (await poll(polls, world.stranger, "", b" " * 100_000))[0] == 400


async def test_a_database_that_does_not_answer_is_no_5xx(
    world: World, polls: ParkedPolls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> Any:
        raise DatabaseError

    monkeypatch.setattr(waiting, "read_all", fail)
    monkeypatch.setattr(waiting, "REST_SECONDS", 0)
    assert (await poll(polls, world.program, "op-1"))[0] == 408


@pytest.mark.parametrize("number", [20, 200])
async def test_parked_polls_cost_one_query_a_sweep_however_many_they_are(
    world: World, polls: ParkedPolls, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    counted: list[str] = []

    def count(name: str) -> None:
        read = getattr(waiting, name)

        def read_and_count(request_ids: Any) -> Any:
            with CaptureQueriesContext(connection) as captured:
                found = read(request_ids)
            counted.extend([name] * len(captured))
            return found

        monkeypatch.setattr(waiting, name, read_and_count)

    request_ids = [await sync_to_async(world.submit)(seq) for seq in range(number)]
    count("read_all")
    count("find_ended")
    tasks = [asyncio.create_task(poll(polls, world.program, each)) for each in request_ids]
    await all_parked(polls, tasks)
    assert counted == ["read_all"] * number  # as each arrives, and then never again
    counted.clear()
    for _ in range(3):
        await polls.sweep()
    assert counted == ["find_ended"] * 3
    operations = Operation.objects.filter(run=world.run)
    await sync_to_async(operations.update)(status="done", result=b"{}", content_type="x")
    await polls.sweep()
    await asyncio.gather(*tasks)
    assert counted == ["find_ended"] * 4 + ["read_all"]


async def test_a_server_that_stops_asks_its_polls_to_try_again(
    world: World, polls: ParkedPolls
) -> None:
    request_id = await sync_to_async(world.submit)(0)
    task = await park(polls, world.program, request_id)
    task.cancel()
    status, _, body = await task
    assert (status, json.loads(body)["type"]) == (408, "try_again")
    assert polls.waiting == {}


async def test_200_parked_polls_cost_no_threads(world: World, polls: ParkedPolls) -> None:
    request_ids = [await sync_to_async(world.submit)(seq) for seq in range(200)]
    before = threading.active_count()
    tasks = [
        asyncio.create_task(poll(polls, world.program, request_id)) for request_id in request_ids
    ]
    await all_parked(polls, tasks)
    assert threading.active_count() - before <= 5
    operations = Operation.objects.filter(run=world.run)
    await sync_to_async(operations.update)(status="done", result=b"{}", content_type="x")
    await polls.sweep()
    answers = await asyncio.gather(*tasks)
    assert {status for status, _, _ in answers} == {200}
    assert threading.active_count() - before <= 5
