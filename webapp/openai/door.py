"""Where requests for inference come in, before Django: who waits for tokens costs no thread."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import unquote

from django.db import DatabaseError

from training.errors import InvalidInput
from webapp.accounts.credentials import find_actor, recall_actor
from webapp.accounts.models import Actor
from webapp.core.errors import TooMany, UserError, choose_status
from webapp.core.event_streams import EventStream, wait_for_leaving
from webapp.core.fields import Fields, read_fields
from webapp.core.threads import Receive, Scope, Send
from webapp.deployments.models import SamplingCall
from webapp.deployments.streams import Streams
from webapp.openai.chat import Chat
from webapp.openai.completions import Completions
from webapp.openai.errors import (
    BUSY,
    NO_KEY,
    READ_ONLY,
    STOPPING,
    WRONG_KEY,
    Refused,
    describe_error,
    write_json,
)
from webapp.openai.exchange import Exchange
from webapp.openai.fireworks import FireworksCompletions
from webapp.openai.forms import Form, Result
from webapp.openai.listing import describe_model, list_models
from webapp.openai.metrics import describe_metrics
from webapp.openai.submitting import make_calls

MAX_BODY_BYTES = 16 * 1024**2
MOST_FOLLOWED = 5000  # by one web process; it costs no query to know
LISTS = ("/v1/models", "/inference/v1/models")

logger = logging.getLogger(__name__)
Headers = list[tuple[bytes, bytes]]
FORMS: Mapping[str, Callable[[Fields, str], Form]] = {
    "/v1/chat/completions": Chat.read,
    "/v1/completions": Completions.read,
    "/inference/v1/chat/completions": Chat.read,
    "/inference/v1/completions": FireworksCompletions.read,
}


class Gone(Exception):  # noqa: N818 - not a fault
    """The client has hung up, or reads nothing any more."""


class InferenceDoor:
    """Answers everything below /v1/ and /inference/v1/ that is no control plane."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        number = read_header(scope, b"x-request-id")[:200] or secrets.token_hex(12)
        reply = Reply(send, [(b"x-request-id", number.encode("latin-1", "replace"))])
        with suppress(Gone):
            try:
                await self._answer(scope, receive, reply)
            except Refused as refused:
                await reply.send_json(refused.status, refused.body)
            except (UserError, InvalidInput) as error:
                await reply.refuse(choose_status(error), str(error), read_field(error))
            except DatabaseError as error:
                logger.warning("%s could not be answered: %s", scope["path"], error)
                await reply.refuse(503, BUSY)
            except asyncio.CancelledError:  # the server stops: it would say 500 for us
                await reply.refuse(503, STOPPING)

    async def _answer(self, scope: Scope, receive: Receive, reply: "Reply") -> None:
        method, path = scope["method"], scope["path"].rstrip("/")
        read = FORMS.get(path)
        is_list = path in LISTS or path.startswith(tuple(f"{each}/" for each in LISTS))
        if read is None and not is_list:
            raise Refused(404, f"There is no {path[:300]} here.")
        if method != ("GET" if read is None else "POST"):
            raise Refused(405, f"{path} answers {'GET' if read is None else 'POST'} only.")
        actor = await self._identify(scope)
        if read is None:
            await reply.send_json(200, await self.streams.look(read_list, actor, path))
            return
        if not actor.can_write:
            raise Refused(403, READ_ONLY)
        form = read(read_fields(await read_body(receive)), secrets.token_hex(12))
        await self._exchange(actor, form, receive, reply)

    async def _identify(self, scope: Scope) -> Actor:
        secret = read_secret(scope)
        if not secret:
            raise Refused(401, NO_KEY)
        actor = recall_actor(secret) or await self.streams.look(find_actor, secret)
        if actor is None:
            raise Refused(401, WRONG_KEY)
        return actor

    async def _exchange(self, actor: Actor, form: Form, receive: Receive, reply: "Reply") -> None:
        """As long as its client is there."""
        if len(self.streams.followers) >= MOST_FOLLOWED:
            raise TooMany(f"{MOST_FOLLOWED} answers are waited for already: send more later.")
        followers = await self.streams.submit(partial(make_calls, actor, form))
        exchange = Exchange(self.streams, form, followers)
        try:
            await unless_gone(self._tell(exchange, form, reply), receive)
        finally:
            await exchange.cancel()

    async def _tell(self, exchange: Exchange, form: Form, reply: "Reply") -> None:
        if form.is_streamed:
            await exchange.stream(reply.events)
        else:
            results = await exchange.answer()
            await reply.send_json(200, form.describe(results), describe_headers(form, results))


class Reply:
    """What one client is sent."""

    def __init__(self, send: Send, headers: Headers) -> None:
        self._send = send
        self.headers = headers
        self.events = EventStream(send, headers)

    async def refuse(self, status: int, message: str, field: str = "") -> None:
        await self.send_json(status, describe_error(status, message, field=field))

    async def send_json(self, status: int, value: Any, headers: Sequence[Any] = ()) -> None:
        """A stream that has begun stays what it is: it breaks off."""
        if self.events.has_begun:
            return
        body = write_json(value)
        lines = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        extra = {401: [(b"www-authenticate", b"Bearer")], 429: [(b"retry-after", b"1")]}
        lines += [*self.headers, *headers, *extra.get(status, [])]
        await self._send({"type": "http.response.start", "status": status, "headers": lines})
        await self._send({"type": "http.response.body", "body": body})


async def unless_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Where the client hangs up first, the work is cancelled. Gone: it did."""
    task = asyncio.create_task(work)
    leaving = asyncio.create_task(wait_for_leaving(receive))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        task.result()
    except TimeoutError:
        raise Gone from None
    finally:
        task.cancel()
        leaving.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def read_body(receive: Receive) -> bytes:
    pieces: list[bytes] = []
    is_more, size = True, 0
    while is_more:
        event = await receive()
        if event["type"] != "http.request":
            raise Gone
        pieces.append(event.get("body", b""))
        size, is_more = size + len(pieces[-1]), event.get("more_body", False)
        if size > MAX_BODY_BYTES:
            raise Refused(413, f"The body is too large: at most {MAX_BODY_BYTES >> 20} MiB.")
    return b"".join(pieces)


def read_list(actor: Actor, path: str) -> Mapping[str, Any]:
    name = path.partition("/v1/models")[2].lstrip("/")
    return describe_model(actor, unquote(name)) if name else list_models(actor)


def read_secret(scope: Scope) -> str:
    scheme, _, secret = read_header(scope, b"authorization").partition(" ")
    bearer = secret.strip() if scheme.lower() == "bearer" else ""
    return read_header(scope, b"x-api-key") or bearer


def read_header(scope: Scope, name: bytes) -> str:
    found = (value for key, value in scope["headers"] if key == name)
    return next(found, b"").decode("latin-1")


def read_field(error: UserError | InvalidInput) -> str:
    return error.field if isinstance(error, UserError) else ""


def describe_headers(form: Form, results: Sequence[Result]) -> Headers:
    """Fireworks' clients read how long it took from these, where the answer is no stream."""
    if form.purpose != SamplingCall.Purpose.FIRETITAN:
        return []
    metrics = describe_metrics(results[0]).items()
    return [(f"fireworks-{name}".encode(), value.encode()) for name, value in metrics]
