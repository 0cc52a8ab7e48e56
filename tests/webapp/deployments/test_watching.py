"""The playground's answers as events: from the first word, to all who look on, until they go."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from asgiref.sync import sync_to_async
from channels.auth import AuthMiddlewareStack
from django.test import Client

from tests.webapp.cast import make_actor, make_viewer, sign_in
from tests.webapp.deployments.conftest import FIRST, RESULT, SECOND
from webapp.accounts.models import Actor
from webapp.core.threads import Scope
from webapp.deployments import calls, watching
from webapp.deployments.models import SamplingCall
from webapp.deployments.pieces import Piece, write_pieces
from webapp.deployments.streams import Streams
from webapp.deployments.watching import AnswerStreams, Watches
from webapp.fleet.models import BaseModel, BaseModelName

pytestmark = pytest.mark.django_db(transaction=True)

WORKER = "sampler-test"


class World:
    """Alice asks in the playground of this process; a sampler answers."""

    def __init__(self) -> None:
        self.actor: Actor = make_actor("alice")
        self.base_model = BaseModel.objects.create(path="/models/tiny", context_tokens=256)
        BaseModelName.objects.create(base_model=self.base_model, name="tiny/chat")
        self.browser: Client = sign_in(self.actor)
        self.streams = Streams()

    def ask(self) -> SamplingCall:
        question = {"left": self.base_model.pk, "prompt": "Who?", "temperature": "0"}
        sent = question | {"max_tokens": "16", "seed": "7"}
        assert self.browser.post("/playground/", sent).status_code == 302
        return SamplingCall.objects.get()

    def finish(self) -> None:
        (call,) = calls.claim_calls(worker=WORKER, limit=1)
        result = orjson.dumps(RESULT)
        calls.finish_call(call, worker=WORKER, result=result, content_type="application/json")

    def say(self, call: SamplingCall, piece: Piece) -> None:
        self.streams.hear(write_pieces([(call.request_id, piece)]).decode())


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = await sync_to_async(World)()
    watching.watches.open(made.streams)
    yield made
    watching.watches.close()


async def read(events: AsyncIterator[bytes]) -> tuple[str, dict[str, Any]]:
    name, data = (await anext(events)).decode().strip().split("\n")
    return name.removeprefix("event: "), orjson.loads(data.removeprefix("data: "))


async def test_a_page_that_opens_the_stream_late_misses_nothing(world: World) -> None:
    call = await sync_to_async(world.ask)()
    world.say(call, FIRST)
    await asyncio.sleep(0)
    first, second = watching.watches.read(call.pk), watching.watches.read(call.pk)
    assert await read(first) == ("piece", {"text": "Hi"})
    world.say(call, SECOND)
    assert await read(first) == ("piece", {"text": " you"})
    assert await read(second) == ("piece", {"text": "Hi you"})
    await sync_to_async(world.finish)()
    await world.streams.wake(call.request_id)
    assert [await read(first), await read(second)] == [("end", {})] * 2
    assert watching.watches.watches == {}


async def test_an_answer_that_was_there_before_is_told_whole(world: World) -> None:
    call = await sync_to_async(world.ask)()
    await sync_to_async(world.finish)()
    events = Watches()
    events.open(world.streams)
    stream = events.read(call.pk)
    assert await read(stream) == ("piece", {"text": "Hi you"})
    assert await read(stream) == ("end", {})


async def test_two_pages_that_come_at_once_leave_nobody_behind_who_follows(world: World) -> None:
    call = await sync_to_async(world.ask)()
    events, streams = Watches(), Streams()
    events.open(streams)
    pages = events.read(call.pk), events.read(call.pk)
    told = asyncio.gather(*map(read, pages))
    while call.pk not in events.watches or len(events.watches[call.pk].readers) < 2:
        await asyncio.sleep(0.01)
    await sync_to_async(world.finish)()
    await streams.wake(call.request_id)
    assert await told == [("piece", {"text": "Hi you"})] * 2
    assert [await read(page) for page in pages] == [("end", {})] * 2
    assert streams.followers == {}


async def test_a_page_that_leaves_cancels_its_call_and_one_that_is_reloaded_does_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "GRACE_SECONDS", 60.0)
    call = await sync_to_async(world.ask)()
    world.say(call, FIRST)
    left = watching.watches.read(call.pk)
    await read(left)
    await left.aclose()
    back = watching.watches.read(call.pk)  # within the time that is left to it
    assert await read(back) == ("piece", {"text": "Hi"})
    watch = watching.watches.watches[call.pk]
    monkeypatch.setattr(watching, "GRACE_SECONDS", 0.05)
    await back.aclose()
    while not watch.is_over:
        await asyncio.sleep(0.01)
    assert watch.pump is not None
    await watch.pump
    await call.arefresh_from_db()
    assert call.status == SamplingCall.Status.CANCELLED


async def open_stream(
    browser: Client, call_id: int, leaves: asyncio.Event | None = None
) -> tuple[dict[str, Any], bytes]:
    """How the response began, and its body. `leaves`: set by its first piece, the client goes."""
    cookies = "; ".join(f"{key}={morsel.value}" for key, morsel in browser.cookies.items())
    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": f"/playground/answers/{call_id}/stream/",
        "headers": [(b"cookie", cookies.encode())],
    }
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await (leaves or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if leaves is not None:
            leaves.set()

    await AuthMiddlewareStack(AnswerStreams(watching.watches))(scope, receive, send)
    return sent[0], b"".join(each["body"] for each in sent[1:])


async def test_the_stream_is_for_who_may_see_the_conversation(world: World) -> None:
    call = await sync_to_async(world.ask)()
    await sync_to_async(world.finish)()
    await world.streams.wake(call.request_id)
    charlie = await sync_to_async(lambda: sign_in(make_actor("charlie")))()
    for browser in (charlie, Client()):
        begun, body = await open_stream(browser, call.pk)
        assert (begun["status"], body) == (404, b"There is no such call.")
    begun, body = await open_stream(world.browser, call.pk)
    assert begun["status"] == 200
    assert (b"content-type", b"text/event-stream") in begun["headers"]
    assert body == b'event: piece\ndata: {"text":"Hi you"}\n\nevent: end\ndata: {}\n\n'


async def test_a_connection_that_ends_lets_its_call_go(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "GRACE_SECONDS", 0.0)
    call = await sync_to_async(world.ask)()
    await open_stream(world.browser, call.pk, leaves=asyncio.Event())
    while (await SamplingCall.objects.aget(pk=call.pk)).status != SamplingCall.Status.CANCELLED:
        await asyncio.sleep(0.01)


async def test_a_viewer_who_leaves_cancels_nobodys_call(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "GRACE_SECONDS", 0.0)
    call = await sync_to_async(world.ask)()
    world.say(call, FIRST)
    viewer = await sync_to_async(lambda: sign_in(make_viewer(world.actor)))()
    _, body = await open_stream(viewer, call.pk, leaves=asyncio.Event())
    assert b"event: end" not in body
    await asyncio.sleep(0)
    watch = watching.watches.watches[call.pk]
    await sync_to_async(world.finish)()
    await world.streams.wake(call.request_id)
    while not watch.is_over:
        await asyncio.sleep(0.01)
    assert watch.text == "Hi you"


async def test_an_answer_that_is_stopped_stays_as_far_as_it_was_read(world: World) -> None:
    call = await sync_to_async(world.ask)()
    world.say(call, FIRST)
    stream = watching.watches.read(call.pk)
    assert await read(stream) == ("piece", {"text": "Hi"})
    stop = f"/playground/answers/{call.pk}/cancel/"
    part = (await sync_to_async(world.browser.post)(stop)).content.decode()
    assert '<div class="as-text muted">Hi</div>' in part
    assert "Stopped before it was whole." in part
    await call.arefresh_from_db()
    assert (call.status, call.about["said"]) == (SamplingCall.Status.CANCELLED, "Hi")
    await world.streams.wake(call.request_id)
    assert await read(stream) == ("end", {})
