"""The socket of a page: says that something changed, and the page fetches what it lacks."""

from abc import ABC, abstractmethod
from typing import Any

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer

from webapp.core.subscription import list_recent


class HintConsumer(AsyncJsonWebsocketConsumer, ABC):  # type: ignore[misc] # untyped channels
    """Subclasses say which group a user may join; everything else is the same for every page."""

    group = ""

    @abstractmethod
    def find_group(self) -> str:
        """The group this user may watch at this URL; empty: none, and the socket is refused."""

    def read_id(self, name: str) -> str:
        """From the socket's path. PostgreSQL asks for no NUL."""
        found: str = self.scope["url_route"]["kwargs"][name]
        return found.replace("\0", "")

    async def connect(self) -> None:
        self.group = await database_sync_to_async(self.find_group)()
        if not self.group:
            await self.close(code=4404)
            return
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:  # noqa: ARG002 - channels calls it
        if self.group:
            await self.channel_layer.group_discard(self.group, self.channel_name)

    async def receive(self, text_data: str | None = None, **_: Any) -> None:
        """How many milliseconds ago its page was asked for: it has not heard what came since."""
        for what in list_recent(self.group, read_age(text_data or "")):
            await self.send_json({"what": what})

    async def changed(self, event: dict[str, Any]) -> None:
        await self.send_json({"what": event["what"]})


def read_age(text: str) -> float:
    """In seconds; anything but a number is 0."""
    return int(text) / 1000 if text.isdecimal() and len(text) < 10 else 0.0
