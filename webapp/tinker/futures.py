"""One poll for all samples of a sampling client, instead of one for each: what has ended since."""

import asyncio
import json
import logging
from asyncio import Future
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from django.db import DatabaseError
from django.db.models import QuerySet
from django.db.models.functions import Length

from webapp.accounts.models import Actor
from webapp.core.errors import NotFound, UserError
from webapp.core.fields import LARGEST, Fields, read_fields
from webapp.deployments.calls import CLONE, LIVE
from webapp.deployments.models import SamplingCall, SamplingSession
from webapp.wire.door import Answer, Door, Refused
from webapp.wire.passes import JSON

PATH = "/api/v1/retrieve_futures"
HOLD_SECONDS = 30.0  # the SDK gives up on one poll after 45 s
MOST_AT_ONCE = 2000  # completions of one answer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    """What one copy of a sampling client asks: `cursor` is the last number it has seen."""

    sampler_id: str
    clone: int
    project_id: str
    cursor: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    completions: list[dict[str, Any]]
    cursor: int


class ParkedSamplers(Door):
    """`sampling session -> who polls it, and the number up to which each has read`."""

    max_body_bytes = 1024**2  # it may name thousands of requests whose results have arrived

    def __init__(
        self, threads: ThreadPoolExecutor | None = None, *, hold_seconds: float = HOLD_SECONDS
    ) -> None:
        super().__init__(threads)
        self.hold_seconds = hold_seconds
        self.waiting: dict[str, dict[Future[None], int]] = {}

    async def answer(self, actor: Actor, body: bytes) -> Answer:
        news = await self.wait(read_poll(read_fields(body), actor, self.hold_seconds))
        answer = {"completions": news.completions, "cursor": news.cursor}
        return 200, JSON, json.dumps(answer).encode()

    async def wait(self, poll: Poll) -> News:
        """Parked before each look: nothing that ends falls between the two."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + poll.seconds
        while True:
            arrival = self.park(poll)
            try:
                news = await self.look(read_news, poll)
                if news.completions or loop.time() >= deadline:
                    return news
                poll = replace(poll, cursor=news.cursor)
                self.waiting[poll.sampler_id][arrival] = poll.cursor
                async with asyncio.timeout_at(deadline):
                    await arrival
            except TimeoutError:
                return news
            finally:
                self.leave(poll, arrival)

    def park(self, poll: Poll) -> Future[None]:
        arrival: Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.setdefault(poll.sampler_id, {})[arrival] = poll.cursor
        return arrival

    def leave(self, poll: Poll, arrival: Future[None]) -> None:
        arrivals = self.waiting[poll.sampler_id]
        del arrivals[arrival]
        if not arrivals:
            del self.waiting[poll.sampler_id]

    async def wake(self, sampler_id: str) -> None:
        for arrival in self.waiting.get(sampler_id, ()):
            if not arrival.done():
                arrival.set_result(None)

    async def sweep(self) -> None:
        """One query for everybody; wake-ups travel by Redis and may be lost."""
        if not self.waiting:
            return
        try:
            states = await self.look(read_states, list(self.waiting))
        except DatabaseError as error:
            logger.warning("waiting samplers could not be looked after: %s", error)
            return
        for sampler_id, num_ended, finished_at in states:
            cursors = self.waiting.get(sampler_id, {}).values()
            if finished_at or any(cursor < num_ended for cursor in cursors):
                await self.wake(sampler_id)


def read_poll(fields: Fields, actor: Actor, hold_seconds: float) -> Poll:
    target = fields.inner("target")
    kind = target.text("type", "sampling_session")
    if kind != "sampling_session":
        raise UserError(f"target.type is {kind:.40}; send sampling_session.", field="target.type")
    seconds = fields.number("timeout", hold_seconds)
    if seconds < 0:
        raise UserError("timeout is negative: send 0 or more.", field="timeout")
    fields.list_of("retrieved_request_ids", str)
    return Poll(
        sampler_id=target.text("sampling_session_id"),
        clone=target.whole("cloned_sampler_id", 0, most=LARGEST // CLONE - 1),
        project_id=actor.project.pk,
        cursor=fields.whole("prev_cursor", 0),
        seconds=min(seconds, hold_seconds),
    )


def read_states(sampler_ids: Iterable[str]) -> list[tuple[str, int, Any]]:
    samplers = SamplingSession.objects.filter(pk__in=sampler_ids)
    return list(samplers.values_list("pk", "num_ended", "session__finished_at"))


def read_news(poll: Poll) -> News:
    """What ended of this copy after `poll.cursor`. Two queries, and one while nothing has ended."""
    samplers = SamplingSession.objects.filter(pk=poll.sampler_id, project=poll.project_id)
    state = samplers.values_list("num_ended", "session__finished_at").first()
    if state is None:
        raise NotFound(f"There is no sampling session {poll.sampler_id[:100]}.")
    num_ended, finished_at = state
    # A number that was not given out yet is of another database, before a backup was restored.
    cursor = poll.cursor if poll.cursor <= num_ended else 0
    calls = filter_copy(SamplingCall.objects.all(), poll)
    completions: list[dict[str, Any]] = []
    if cursor < num_ended:
        ended = calls.filter(end_number__gt=cursor, end_number__lte=num_ended)
        completions, num_ended = cut_page(ended, num_ended)
    if not completions and finished_at and poll.seconds and not has_live(calls):
        raise Refused(410, "The session of this sampling client has ended: open another one.")
    return News(completions=completions, cursor=num_ended)


def filter_copy(calls: QuerySet[SamplingCall], poll: Poll) -> QuerySet[SamplingCall]:
    """Each copy of a client counts its requests from its own thousand million."""
    least = poll.clone * CLONE
    return calls.filter(
        sampling_session=poll.sampler_id, seq_id__gte=least, seq_id__lt=least + CLONE
    )


def cut_page(ended: QuerySet[SamplingCall], last: int) -> tuple[list[dict[str, Any]], int]:
    """Completions, and up to which number they are all there. Calls that ended together share one,
    so a page that is full ends with all of its last number.
    """
    rows = ended.order_by("end_number", "pk").annotate(size=Length("result"))
    columns = rows.values_list("pk", "status", "size", "end_number")
    page = list(columns[:MOST_AT_ONCE])
    if len(page) == MOST_AT_ONCE:
        last = page[-1][3] or last
        page = [row for row in page if row[3] != last] + list(columns.filter(end_number=last))
    return [describe(pk, status, size) for pk, status, size, _ in page], last


def describe(pk: int, status: str, size: int | None) -> dict[str, Any]:
    request_id = f"call-{pk}"
    if status != SamplingCall.Status.DONE:
        return {"state": "failed", "request_id": request_id}
    return {
        "state": "finished",
        "request_id": request_id,
        "response_payload_uncompressed_size": size,
    }


def has_live(calls: QuerySet[SamplingCall]) -> bool:
    return calls.filter(status__in=LIVE).exists()
