"""Server-sent events to one client, who may read slowly or leave."""

import asyncio
from collections.abc import Sequence

from webapp.core.threads import Receive, Send

SLOW_SECONDS = 60.0  # who takes nothing for so long is gone
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # proxies pass each event on at once
]


class EventStream:
    """Begins with its first event, so that what goes wrong before is an ordinary answer."""

    def __init__(self, send: Send, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self._send = send
        self.headers = [*HEADERS, *headers]
        self.has_begun = False

    async def begin(self) -> None:
        if not self.has_begun:
            self.has_begun = True
            start = {"type": "http.response.start", "status": 200, "headers": self.headers}
            await self._send(start)

    async def send(self, *events: bytes, name: str = "") -> None:
        """Waits while the client's connection is full. TimeoutError: it stays so."""
        head = f"event: {name}\n".encode() if name else b""
        await self._write(b"".join(head + b"data: " + event + b"\n\n" for event in events))

    async def say_alive(self) -> None:
        """A comment, which clients pass over."""
        await self._write(b": waiting\n\n")

    async def end(self) -> None:
        await self.begin()
        await self._send({"type": "http.response.body", "body": b""})

    async def _write(self, body: bytes) -> None:
        if not body:
            return
        async with asyncio.timeout(SLOW_SECONDS):
            await self.begin()
            await self._send({"type": "http.response.body", "body": body, "more_body": True})


async def wait_for_leaving(receive: Receive) -> None:
    """Until the client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass
