"""Answers of the playground while they are drawn, as Server-Sent Events to whoever looks on.

A call is followed from before it is queued, and what it has said so far is kept until it ends: a
page that opens its stream a moment later, or is reloaded, misses nothing.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson

from webapp.accounts.middleware import PROJECT_IN_SESSION
from webapp.accounts.models import User
from webapp.accounts.permissions import check_can_write
from webapp.accounts.services import find_actor_of_user
from webapp.core.errors import UserError
from webapp.core.threads import Receive, Scope, Send
from webapp.deployments.conversation import find_calls
from webapp.deployments.pieces import Piece
from webapp.deployments.streams import Follower, Streams

PREFIX, SUFFIX = "/playground/answers/", "/stream/"
GRACE_SECONDS = 5.0  # a page that is reloaded, or has lost its connection, is back by then
BEAT_SECONDS = 15.0  # proxies end connections on which nothing is said

HEADERS = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)
NOT_FOUND = {"type": "http.response.start", "status": 404, "headers": ()}


@dataclass(slots=True, eq=False, kw_only=True)
class Watch:
    """One call that is under way: what it has said so far, and who reads it."""

    follower: Follower
    text: str = ""
    is_over: bool = False
    readers: set[asyncio.Event] = field(default_factory=set)
    pump: asyncio.Task[None] | None = None

    def say(self, text: str = "", *, is_over: bool = False) -> None:
        self.text += text
        self.is_over = self.is_over or is_over
        for reader in self.readers:
            reader.set()


class Watches:
    """The playground's calls that are under way in this process. Closed until a server opens it."""

    def __init__(self) -> None:
        self.streams = Streams()
        self.watches: dict[int, Watch] = {}
        self.loop: asyncio.AbstractEventLoop | None = None

    def open(self, streams: Streams) -> None:
        self.streams = streams
        self.loop = asyncio.get_running_loop()

    def close(self) -> None:
        self.loop = None
        for watch in list(self.watches.values()):
            if watch.pump is not None:
                watch.pump.cancel()

    def expect(self, call_ids: Iterable[int]) -> None:
        """From the thread that is about to commit these calls."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self._expect, list(call_ids))

    def find_text(self, call_id: int) -> str:
        """What a call that is under way here has said so far, for whatever thread asks."""
        watch = self.watches.get(call_id)
        return watch.text if watch is not None else ""

    def _expect(self, call_ids: Iterable[int]) -> None:
        for call_id in call_ids:
            self._begin(call_id, self.streams.expect(call_id))

    def _begin(self, call_id: int, follower: Follower) -> Watch:
        watch = self.watches.get(call_id)
        if watch is not None:  # another page was faster
            self.streams.leave(follower)
            return watch
        watch = self.watches[call_id] = Watch(follower=follower)
        watch.pump = asyncio.create_task(self._pump(watch))
        return watch

    async def _pump(self, watch: Watch) -> None:
        try:
            async with aclosing(self.streams.follow(watch.follower)) as news:
                async for each in news:
                    if isinstance(each, Piece):
                        watch.say(each.text)
        finally:
            watch.say(is_over=True)
            self.watches.pop(watch.follower.call_id, None)

    async def read(self, call_id: int, *, may_end: bool = True) -> AsyncGenerator[bytes, None]:
        """Events, from the answer's first word to its end. `may_end`: who leaves may cancel it."""
        watch = self.watches.get(call_id)
        if watch is None:
            watch = self._begin(call_id, await self.streams.find(call_id))
        reader, told = asyncio.Event(), 0
        watch.readers.add(reader)
        try:
            while True:
                reader.clear()
                if told < len(watch.text):
                    yield write_event("piece", {"text": watch.text[told:]})
                    told = len(watch.text)
                    continue
                if watch.is_over:
                    yield write_event("end", {})
                    return
                if beat := await wait_or_beat(reader):
                    yield beat
        finally:
            watch.readers.discard(reader)
            if may_end:
                self._leave(watch)

    def _leave(self, watch: Watch) -> None:
        """Where the last one leaves, and is not back in a moment, nobody needs the answer."""
        if not watch.readers and not watch.is_over:
            loop = asyncio.get_running_loop()
            loop.call_later(GRACE_SECONDS, self._give_up, watch)

    def _give_up(self, watch: Watch) -> None:
        if not watch.readers and not watch.is_over and watch.pump is not None:
            watch.pump.cancel()
            watch.pump = asyncio.create_task(self.streams.cancel(watch.follower))


async def wait_or_beat(reader: asyncio.Event) -> bytes:
    """Empty where there is news."""
    with suppress(TimeoutError):
        await asyncio.wait_for(reader.wait(), BEAT_SECONDS)
        return b""
    return b":\n\n"


def write_event(name: str, data: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data))


def is_watched(path: str) -> bool:
    return read_call_id(path) is not None


def read_call_id(path: str) -> int | None:
    if not (path.startswith(PREFIX) and path.endswith(SUFFIX)):
        return None
    number = path.removeprefix(PREFIX).removesuffix(SUFFIX)
    return int(number) if number.isdecimal() and len(number) < 18 else None


def may_watch(user: Any, project_id: str | None, call_id: int) -> bool:
    actor = find_actor_of_user(user, project_id=project_id) if isinstance(user, User) else None
    return actor is not None and find_calls(actor).filter(pk=call_id).exists()


def may_cancel(user: User, project_id: str | None, call_id: int) -> bool:
    """Of who may watch it: a viewer looks on, and changes nothing by leaving."""
    actor = find_actor_of_user(user, project_id=project_id)
    call = find_calls(actor).filter(pk=call_id).first() if actor else None
    if actor is None or call is None:
        return False
    try:
        check_can_write(actor, project_id=call.project_id)
    except UserError:
        return False
    return True


class AnswerStreams:
    """Behind the middleware that reads sessions; a stream holds no thread while it waits."""

    def __init__(self, watches: Watches) -> None:
        self.watches = watches

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call_id = read_call_id(scope["path"])
        project_id = scope["session"].get(PROJECT_IN_SESSION)
        user = scope["user"]._wrapped
        look = self.watches.streams.look
        if call_id is None or not await look(may_watch, user, project_id, call_id):
            await send(NOT_FOUND)
            await send({"type": "http.response.body", "body": b"There is no such call."})
            return
        may_end = await look(may_cancel, user, project_id, call_id)
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        telling = asyncio.create_task(self._tell(call_id, send, may_end=may_end))
        leaving = asyncio.create_task(see_leave(receive))
        try:
            await asyncio.wait((telling, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            telling.cancel()
            await asyncio.gather(telling, leaving, return_exceptions=True)

    async def _tell(self, call_id: int, send: Send, *, may_end: bool) -> None:
        async with aclosing(self.watches.read(call_id, may_end=may_end)) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def see_leave(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


watches = Watches()
