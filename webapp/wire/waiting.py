"""Parked polls: who waits for a result costs no query, however many wait."""

import asyncio
import json
import logging
import random
from asyncio import Future
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from django.db import DatabaseError

from webapp.accounts.models import Actor
from webapp.core.fields import read_fields
from webapp.fleet.capacity import read_capacity
from webapp.runs.lineup import Lineup, Wait, read_lineup
from webapp.runs.outcomes import Outcome
from webapp.wire.door import Answer, Door, refuse
from webapp.wire.outcomes import find_ended, read_all
from webapp.wire.passes import JSON

PATH = "/api/v1/retrieve_future"
HOLD_SECONDS = 30.0  # the SDK gives up on one poll after 45 s
SWEEP_SECONDS = 2.0  # how late a result is whose wake-up was lost
REST_SECONDS = 1.0  # of a client whose poll met a database that does not answer

logger = logging.getLogger(__name__)


class ParkedPolls(Door):
    """`request_id -> who waits for it`, of this process."""

    def __init__(
        self, threads: ThreadPoolExecutor | None = None, *, hold_seconds: float = HOLD_SECONDS
    ) -> None:
        super().__init__(threads)
        self.hold_seconds = hold_seconds
        self.waiting: dict[str, set[Future[Outcome]]] = {}
        self.ended: set[str] = set()  # said to have ended, results not read yet
        self.delivery: asyncio.Task[None] | None = None
        self.lineup: asyncio.Task[Lineup] | None = None  # as it was a moment ago
        self.lineup_at = 0.0

    async def answer(self, actor: Actor, body: bytes) -> Answer:
        request_id = read_fields(body).text("request_id")
        outcome = await self.wait(request_id, actor)
        if outcome is None:
            return refuse(404, f"There is no request {request_id[:100]}.")
        if not outcome.is_over:
            return try_again(request_id, explain(outcome, await self.find_lineup()))
        return describe(outcome)

    async def answer_busy(self) -> Answer:
        """The SDK asks again at once, for ever: a little rest is kinder than a 5xx."""
        await asyncio.sleep(REST_SECONDS)
        return try_again("", Wait(reason="the database does not answer", is_stopped=True))

    def answer_stopping(self) -> Answer:
        return try_again("", Wait(reason="the server is starting again", is_stopped=True))

    async def find_lineup(self) -> Lineup:
        """One look for all that are told at about the same time."""
        moment = asyncio.get_running_loop().time()
        if self.lineup is None or moment - self.lineup_at > SWEEP_SECONDS:
            self.lineup = asyncio.create_task(self.look(look_around, None))
            self.lineup_at = moment
        return await asyncio.shield(self.lineup)

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
                # Those that came together do not all come back together.
                async with asyncio.timeout(self.hold_seconds * random.uniform(0.6, 1)):
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


def describe(outcome: Outcome) -> Answer:
    if outcome.is_forgotten:  # the SDK asks for the samples once more, under a new number
        sentence = f"The samples of {outcome.request_id} are forgotten: ask for them again."
        return refuse(410, sentence)
    if outcome.error:
        failed = {"error": outcome.error, "category": outcome.category}
        return 200, JSON, json.dumps(failed).encode()
    return 200, outcome.content_type, outcome.result


def look_around(_: None) -> Lineup:
    return read_lineup(read_capacity())


def explain(outcome: Outcome, lineup: Lineup) -> Wait:
    """Why it takes so long; without a reason it is being computed."""
    if outcome.request_id.startswith("call-"):
        reason = lineup.capacity.explain_sampling(outcome.base_model_id)
        return Wait(reason=reason, is_stopped=bool(reason))
    return lineup.explain(outcome.run_id, outcome.seq)


def try_again(request_id: str, wait: Wait) -> Answer:
    """The SDK logs what is paused, at most once a minute, and nothing of what only has its turn."""
    answer = {
        "type": "try_again",
        "request_id": request_id,
        "queue_state": "paused_capacity" if wait.is_stopped else "active",
        "queue_state_reason": wait.reason or None,
    }
    return 408, JSON, json.dumps(answer).encode()
