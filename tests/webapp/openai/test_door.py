"""Who may come in, what is refused, and what happens when a client leaves."""

import asyncio
import threading
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from tests.webapp.cast import make_viewer
from tests.webapp.openai.conftest import MODEL, Client, Exchange
from tests.workers.serving.conftest import REPLICA
from webapp.accounts.services import create_key
from webapp.core import event_streams
from webapp.deployments import replicas
from webapp.deployments.models import SamplingCall
from webapp.openai import door

pytestmark = pytest.mark.django_db(transaction=True)
PATH = "/v1/completions"
LONG: dict[str, Any] = {
    "model": MODEL,
    "prompt": [1, 5, 9],
    "max_tokens": 500,
    "ignore_eos": True,
    "seed": 3,
}


async def test_both_headers_carry_a_key(client: Client) -> None:
    for headers in ({"authorization": f"bearer {client.secret}"}, {"x_api_key": client.secret}):
        blank = {"authorization": "", **headers}
        assert (await client.read("/v1/models", **blank)).status == 200
    for headers in ({"authorization": ""}, {"authorization": "Bearer tml-wrong"}):
        told = await client.read("/v1/models", **headers)
        assert (told.status, told.error["code"]) == (401, "invalid_api_key")
        assert told.headers["www-authenticate"] == "Bearer"


async def test_a_viewers_key_lists_and_does_not_sample(client: Client) -> None:
    viewer = await sync_to_async(make_viewer)(client.actor)
    _, client.secret = await sync_to_async(create_key)(actor=viewer, name="read")
    assert (await client.read("/v1/models")).status == 200
    told = await client.post(PATH, prompt="Hello")
    assert (told.status, told.error["type"]) == (403, "permission_error")


async def test_paths_methods_and_bodies_that_are_none_are_refused(client: Client) -> None:
    assert (await client.read("/v1/embeddings")).status == 404
    assert (await client.read(PATH)).status == 405
    assert (await client.open("POST", "/v1/models", {}).run()).status == 405
    for body in (b"", b"{", b"[]", b'"x"', b"\xff", b"null"):
        told = await client.open("POST", PATH, body).run()
        assert (told.status, told.error["type"]) == (400, "invalid_request_error")
    told = await client.open("POST", PATH, b" " * (17 << 20)).run()
    assert told.status == 413


async def test_a_requests_number_comes_back(client: Client) -> None:
    assert (await client.read("/v1/models", x_request_id="7f")).headers["x-request-id"] == "7f"
    assert (await client.read("/v1/models")).headers["x-request-id"]


async def test_who_comes_when_too_many_wait_is_told_to_come_later(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MOST_FOLLOWED", 0)
    told = await client.post(PATH, prompt="Hello")
    assert (told.status, told.error["code"]) == (429, "rate_limit_exceeded")
    assert told.headers["retry-after"] == "1"


async def find_status() -> str:
    return str((await SamplingCall.objects.aget()).status)


async def until_begun(exchange: Exchange) -> None:
    while not any(b"text" in event.get("body", b"") for event in exchange.sent):
        exchange.arrived.clear()
        await exchange.arrived.wait()


async def test_who_leaves_in_mid_stream_ends_the_call_and_the_servers_work(
    client: Client,
) -> None:
    exchange = client.open("POST", PATH, LONG | {"stream": True})
    task = asyncio.create_task(exchange.run())
    await until_begun(exchange)
    exchange.left.set()
    await task
    assert await find_status() == "cancelled"
    assert client.door.streams.followers == {}
    while client.sampler.tasks:
        await asyncio.sleep(0.01)


async def test_who_leaves_while_waiting_for_the_whole_answer_ends_the_call(
    client: Client,
) -> None:
    exchange = client.open("POST", PATH, LONG)
    task = asyncio.create_task(exchange.run())
    while not client.sampler.tasks:
        await asyncio.sleep(0.01)
    exchange.left.set()
    await asyncio.wait([task])
    assert (exchange.sent, await find_status()) == ([], "cancelled")


async def test_who_reads_nothing_is_taken_to_have_left(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_streams, "SLOW_SECONDS", 0.05)
    exchange = client.open("POST", PATH, LONG | {"stream": True})

    async def stick(event: Any) -> None:
        exchange.sent.append(event)
        if event.get("body"):
            await asyncio.Event().wait()

    await client.door(exchange.scope, exchange.receive, stick)
    assert await find_status() == "cancelled"


async def test_a_slow_reader_gets_all_of_it_in_larger_pieces(client: Client) -> None:
    asked = LONG | {"max_tokens": 60}
    whole = (await client.open("POST", PATH, asked).run()).json
    exchange = client.open("POST", PATH, asked | {"stream": True})
    exchange.slowness = 0.1
    told = await exchange.run()
    texts = [event["choices"][0]["text"] for event in told.events]
    assert "".join(texts) == whole["choices"][0]["text"]
    assert len(texts) < whole["usage"]["completion_tokens"]


async def test_a_failure_in_mid_stream_is_its_last_event(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = client.open("POST", PATH, LONG | {"stream": True})
    task = asyncio.create_task(exchange.run())
    await until_begun(exchange)
    await SamplingCall.objects.aupdate(status="failed", error="It broke.", error_category="server")
    told = await task
    assert told.status == 200
    error = told.events[-1]["error"]
    assert (error["message"], error["status_code"]) == ("It broke.", 500)


async def test_a_server_side_failure_is_no_fault_of_the_callers(client: Client) -> None:
    exchange = client.open("POST", PATH, LONG)
    task = asyncio.create_task(exchange.run())
    while not client.sampler.tasks:
        await asyncio.sleep(0.01)
    await SamplingCall.objects.aupdate(status="failed", error="It broke.", error_category="server")
    told = await task
    assert (told.status, told.error["type"]) == (500, "server_error")


async def test_while_a_model_loads_its_client_is_told_that_somebody_is_there(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.openai.exchange.ALIVE_SECONDS", 0.02)
    await sync_to_async(replicas.mark_lost)(REPLICA, start="1", error="It ended.")
    exchange = client.open("POST", PATH, LONG | {"stream": True})
    task = asyncio.create_task(exchange.run())
    while not any(event.get("body", b"").startswith(b":") for event in exchange.sent):
        await asyncio.sleep(0.01)
    exchange.left.set()
    await task
    assert await find_status() == "cancelled"


async def test_many_streams_take_no_threads(client: Client) -> None:
    await client.read("/v1/models")
    asked = LONG | {"stream": True, "max_tokens": 40}
    before = threading.active_count()
    exchanges = [client.open("POST", PATH, asked | {"seed": seed}) for seed in range(30)]
    tasks = [asyncio.create_task(each.run()) for each in exchanges]
    await until_begun(exchanges[0])
    assert threading.active_count() < before + 15
    told = await asyncio.gather(*tasks)
    assert [each.events[-1]["choices"][0]["finish_reason"] for each in told] == ["length"] * 30
    assert len(told) == 30
