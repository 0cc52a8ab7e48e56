"""What is answered before Django: no thread, no connection and no query for each that waits.

Django's own ASGI handler pins a thread and a database connection for each request in flight.
"""

import asyncio
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from django.db import DatabaseError, close_old_connections

from training.errors import shorten
from webapp.accounts.credentials import (
    INVALID_TOKEN,
    NO_KEY,
    WRONG_KEY,
    find_actor,
    recall_actor,
)
from webapp.accounts.models import Actor
from webapp.core.errors import UserError, choose_status
from webapp.core.threads import Receive, Scope, Send
from webapp.wire.passes import JSON

NUM_THREADS = 2  # for the database; queries take a millisecond
MAX_BODY_BYTES = 64 * 1024

logger = logging.getLogger(__name__)
T = TypeVar("T")
Answer = tuple[int, str, bytes]  # status, content type, body


class Refused(Exception):  # noqa: N818 - reads as the sentence it is
    """An answer that is not a result."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.answer = refuse(status, detail)


class Door(ABC):
    """Reads a request, says whose it is, and sends what `answer` returns."""

    max_body_bytes = MAX_BODY_BYTES
    key_variable = "TINKER_API_KEY"  # where the client that knocks here reads its key from

    def __init__(self, threads: ThreadPoolExecutor | None = None) -> None:
        self.threads = threads or ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="door")

    @abstractmethod
    async def answer(self, actor: Actor, body: bytes) -> Answer: ...

    async def answer_busy(self) -> Answer:
        """While the database does not answer."""
        return refuse(503, "The database is busy: try again.")

    def answer_stopping(self) -> Answer:
        return refuse(503, "The server is starting again: try again.")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(receive, self.max_body_bytes)
            status, content_type, body = await self.answer(await self.identify(scope), body)
        except Refused as refused:
            status, content_type, body = refused.answer
        except UserError as error:
            status, content_type, body = refuse(choose_status(error), error.message)
        except DatabaseError as error:
            logger.warning("%s could not be answered: %s", scope["path"], error)
            status, content_type, body = await self.answer_busy()
        except asyncio.CancelledError:  # the server stops: it would say 500 for us
            status, content_type, body = self.answer_stopping()
        headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
        if status == 401:
            headers.append((b"www-authenticate", INVALID_TOKEN.encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def identify(self, scope: Scope) -> Actor:
        secret = read_key(scope)
        if not secret:
            raise Refused(401, NO_KEY.format(variable=self.key_variable))
        actor = recall_actor(secret) or await self.look(find_actor, secret)
        if actor is None:
            raise Refused(401, WRONG_KEY.format(variable=self.key_variable))
        return actor

    async def look(self, read: Callable[[Any], T], argument: Any) -> T:
        """On one of a few threads, each with its own connection that lasts."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, _read_fresh, read, argument)


def _read_fresh(read: Callable[[Any], T], argument: Any) -> T:
    close_old_connections()
    return read(argument)


async def read_body(receive: Receive, most: int) -> bytes:
    body: bytes = b""
    while True:
        event = await receive()
        if event["type"] != "http.request":
            raise UserError("The connection ended before the request did.")
        body += event.get("body", b"")
        if len(body) > most:
            raise UserError("The body is too large for this request.")
        if not event.get("more_body"):
            return body


def read_key(scope: Scope) -> str:
    found = (value for name, value in scope["headers"] if name == b"x-api-key")
    return next(found, b"").decode("latin-1")


def refuse(status: int, detail: str) -> Answer:
    return status, JSON, json.dumps({"detail": shorten(detail)}).encode()
