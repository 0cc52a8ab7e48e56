"""Django's ASGI handler on a few lasting threads, where stock takes a new one for each request."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest
from django.http.response import HttpResponseBase

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class PooledHandler(ASGIHandler):
    """A new thread opens a new database connection: a millisecond that a short call can spare."""

    def __init__(self, *, num_threads: int) -> None:
        super().__init__()
        self.load_middleware(is_async=False)
        self.executors = [ThreadPoolExecutor(1, f"api-{n}") for n in range(num_threads)]
        # The last one used first: fewest connections, warmest caches.
        self.free: asyncio.LifoQueue[ThreadPoolExecutor] = asyncio.LifoQueue()
        for executor in self.executors:
            self.free.put_nowait(executor)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        executor = await self.free.get()
        try:
            async with ThreadSensitiveContext(executor=executor):
                await self.handle(scope, receive, send)
        finally:
            self.free.put_nowait(executor)

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        """All middleware and the view in one go: stock comes back here between them."""
        response: HttpResponseBase = await sync_to_async(self.get_response)(request)
        return response
