"""Parked polls: no thread, no connection and no query each, however many wait.

Django's own ASGI handler pins a thread and a database connection for each request in flight, so
this one stands before it.
"""

import asyncio
import json
import logging
from asyncio import Future
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from django.db import DatabaseError, close_old_connections

from webapp.accounts.models import Actor
from webapp.core.errors import UserError
from webapp.core.threads import Receive, Scope, Send
from webapp.fleet.capacity import Capacity, read_capacity
from webapp.runs.outcomes import Outcome
from webapp.tinker.authentication import NO_KEY, WRONG_KEY, find_actor, recall_actor
from webapp.tinker.fields import read_fields
from webapp.tinker.outcomes import find_ended, read_all
from webapp.tinker.wire import JSON

PATH = "/api/v1/retrieve_future"
HOLD_SECONDS = 30.0  # the SDK gives up on one poll after 45 s
SWEEP_SECONDS = 2.0  # how late a result is whose wake-up was lost
REST_SECONDS = 1.0  # of a client whose poll met a database that does not answer
MAX_BODY_BYTES = 64 * 1024
NUM_THREADS = 2  # for the database; queries take a millisecond

logger = logging.getLogger(__name__)
T = TypeVar("T")


class ParkedPolls:
    """`request_id -> who waits for it`, of this process."""

    def __init__(self, *, hold_seconds: float = HOLD_SECONDS) -> None:
        self.hold_seconds = hold_seconds
        self.waiting: dict[str, set[Future[Outcome]]] = {}
        self.ended: set[str] = set()  # said to have ended, results not read yet
        self.delivery: asyncio.Task[None] | None = None
        self.capacity: asyncio.Task[Capacity] | None = None  # as it was a moment ago
        self.capacity_at = 0.0
        self.threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="polls")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            status, content_type, body = await self.answer(scope, receive)
        except UserError as error:
            status, content_type, body = refuse(400, error.message)
        except DatabaseError as error:
            # The SDK asks again at once, for ever: a little rest is kinder than a 5xx.
            logger.warning("a poll could not look: %s", error)
            await asyncio.sleep(REST_SECONDS)
            status, content_type, body = try_again("", "the database does not answer")
        except asyncio.CancelledError:  # the server stops: it would say 500 for us
            status, content_type, body = try_again("", "the server is starting again")
        headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def answer(self, scope: Scope, receive: Receive) -> tuple[int, str, bytes]:
        body = await read_body(receive)
        secret = read_key(scope)
        if not secret:
            return refuse(401, NO_KEY)
        actor = recall_actor(secret) or await self.look(find_actor, secret)
        if actor is None:
            return refuse(401, WRONG_KEY)
        request_id = read_fields(body).text("request_id")
        outcome = await self.wait(request_id, actor)
        if outcome is None:
            return refuse(404, f"There is no request {request_id[:100]}.")
        if not outcome.is_over:
            return try_again(request_id, explain(outcome, await self.find_capacity()))
        return describe(outcome)

    async def find_capacity(self) -> Capacity:
        """One look for all that are told at about the same time."""
        moment = asyncio.get_running_loop().time()
        if self.capacity is None or moment - self.capacity_at > SWEEP_SECONDS:
            self.capacity = asyncio.create_task(self.look(lambda _: read_capacity(), None))
            self.capacity_at = moment
        return await asyncio.shield(self.capacity)

    async def wait(self, request_id: str, actor: Actor) -> Outcome | None:
        """None: unknown, or not this actor's. Parked before the look: no wake-up falls between."""
        arrival = self.park(request_id)
        try:
            outcome = (await self.look(read_all, [request_id])).get(request_id)
            if outcome is None or outcome.is_forgotten:
                return outcome
            if outcome.project_id != actor.project.pk:
                return None
            if not outcome.is_over:
                async with asyncio.timeout(self.hold_seconds):
                    outcome = await arrival
        except TimeoutError:
            pass
        finally:
            self.leave(request_id, arrival)
        return outcome

    def park(self, request_id: str) -> Future[Outcome]:
        arrival: Future[Outcome] = asyncio.get_running_loop().create_future()
        self.waiting.setdefault(request_id, set()).add(arrival)
        return arrival

    def leave(self, request_id: str, arrival: Future[Outcome]) -> None:
        arrivals = self.waiting.get(request_id, set())
        arrivals.discard(arrival)
        if not arrivals:
            self.waiting.pop(request_id, None)

    async def wake(self, request_id: str) -> None:
        self.note_ended([request_id])

    def note_ended(self, request_ids: Iterable[str]) -> None:
        """Those that somebody here waits for are read, all that end meanwhile in one query."""
        self.ended.update(set(request_ids) & self.waiting.keys())
        if self.ended and (self.delivery is None or self.delivery.done()):
            self.delivery = asyncio.create_task(self.deliver())

    async def deliver(self) -> None:
        while self.ended:
            request_ids, self.ended = self.ended, set()
            try:
                outcomes = await self.look(read_all, request_ids)
            except DatabaseError as error:
                logger.warning("results could not be read, the sweep will: %s", error)
                return
            for request_id, outcome in outcomes.items():
                if outcome.is_over:
                    self.hand_out(request_id, outcome)

    def hand_out(self, request_id: str, outcome: Outcome) -> None:
        for arrival in self.waiting.get(request_id, ()):
            if not arrival.done():
                arrival.set_result(outcome)

    async def sweep(self) -> None:
        """One query for everybody; wake-ups travel by Redis and may be lost."""
        if not self.waiting:
            return
        try:
            self.note_ended(await self.look(find_ended, list(self.waiting)))
        except DatabaseError as error:
            logger.warning("waiting polls could not be looked after: %s", error)

    async def sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self.sweep()

    async def look(self, read: Callable[[Any], T], argument: Any) -> T:
        """On one of a few threads, each with its own connection that lasts."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, _read_fresh, read, argument)


def _read_fresh(read: Callable[[Any], T], argument: Any) -> T:
    close_old_connections()
    return read(argument)


async def read_body(receive: Receive) -> bytes:
    body: bytes = b""
    while True:
        event = await receive()
        if event["type"] != "http.request":
            raise UserError("The connection ended before the request did.")
        body += event.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise UserError("The body is too large for a poll.")
        if not event.get("more_body"):
            return body


def read_key(scope: Scope) -> str:
    found = (value for name, value in scope["headers"] if name == b"x-api-key")
    return next(found, b"").decode("latin-1")


def describe(outcome: Outcome) -> tuple[int, str, bytes]:
    if outcome.is_forgotten:  # the SDK asks for the samples once more, under a new number
        sentence = f"The samples of {outcome.request_id} are forgotten: ask for them again."
        return refuse(410, sentence)
    if outcome.error:
        failed = {"error": outcome.error, "category": outcome.category}
        return 200, JSON, json.dumps(failed).encode()
    return 200, outcome.content_type, outcome.result


def explain(outcome: Outcome, capacity: Capacity) -> str:
    """Why it takes so long; empty where it is only its turn that has not come."""
    if outcome.request_id.startswith("call-"):
        return capacity.explain_sampling(outcome.base_model_id)
    return capacity.explain_training(outcome.base_model_id)


def try_again(request_id: str, reason: str) -> tuple[int, str, bytes]:
    answer = {
        "type": "try_again",
        "request_id": request_id,
        "queue_state": "paused_capacity" if reason else "active",
        "queue_state_reason": reason or None,
    }
    return 408, JSON, json.dumps(answer).encode()


def refuse(status: int, detail: str) -> tuple[int, str, bytes]:
    return status, JSON, json.dumps({"detail": detail}).encode()
