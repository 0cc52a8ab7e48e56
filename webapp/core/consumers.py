"""The socket of a page: says that something changed, and the page fetches what it lacks."""

from abc import ABC, abstractmethod
from typing import Any

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer


class HintConsumer(AsyncJsonWebsocketConsumer, ABC):  # type: ignore[misc] # untyped channels
    """Subclasses say which group a user may join; everything else is the same for every page."""

    group = ""

    @abstractmethod
    def find_group(self) -> str:
        """The group this user may watch at this URL; empty: none, and the socket is refused."""

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

    async def changed(self, event: dict[str, Any]) -> None:
        await self.send_json({"what": event["what"]})
