"""Answers while they are made: who waits for one costs no thread, no connection and no query.

    followers = await streams.submit(lambda: [SamplingCall(...)])
    async for news in streams.follow(followers[0]):
        ...  # Piece, Piece ... Ended

Pieces come by Redis and may be lost; whatever is missing comes with the row's result, before
`Ended`, so that the texts of the pieces are always the whole text.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import orjson
from django.db import DatabaseError, close_old_connections, transaction
from django.utils.timezone import now

from webapp.deployments.calls import cancel_call, submit_calls
from webapp.deployments.models import SamplingCall
from webapp.deployments.pieces import Piece, Progress, read_pieces, read_sample

NUM_THREADS = 4  # for the database; queries take a millisecond
PREFIX = "call-"
NOT_FINITE = "Its answer has numbers that are not finite, and cannot be told."
LONGEST_COMMIT_SECONDS = 60.0  # a busy database holds one up, and until then no row is seen

logger = logging.getLogger(__name__)
T = TypeVar("T")
Status = SamplingCall.Status

ENDED = (Status.DONE, Status.FAILED, Status.CANCELLED, Status.LOST)
COLUMNS = (
    *("pk", "status", "result", "error", "error_category"),
    *("created_at", "started_at", "first_token_at", "finished_at"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a call ended. `result` is {} where it has none; the times are the row's."""

    status: str
    result: Mapping[str, Any]
    error: str
    category: str
    created_at: datetime
    started_at: datetime | None
    first_token_at: datetime | None
    finished_at: datetime | None
    is_gone: bool = False  # there is no row

    @property
    def is_done(self) -> bool:
        return self.status == Status.DONE


@dataclass(slots=True, eq=False, kw_only=True)
class Follower:
    """One watcher of one call."""

    call_id: int
    is_stored: bool = True  # False: its row is about to be committed
    begun_at: float = field(default_factory=time.monotonic)
    samples: dict[int, Progress] = field(default_factory=dict)
    ended: Ended | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def request_id(self) -> str:
        return f"{PREFIX}{self.call_id}"

    def hear(self, piece: Piece) -> None:
        if self.ended is None:
            self._find(piece.index).hear(piece)
            self.news.set()

    @property
    def may_be_early(self) -> bool:
        return not self.is_stored and time.monotonic() - self.begun_at < LONGEST_COMMIT_SECONDS

    def end(self, ended: Ended) -> None:
        if self.ended is not None or (ended.is_gone and self.may_be_early):
            return
        self.ended = ended
        for index, sequence in enumerate(ended.result.get("sequences", ())):
            self._find(index).complete(read_sample(index, sequence))
        self.news.set()

    def take(self) -> list[Piece]:
        taken = [self.samples[index].take() for index in sorted(self.samples)]
        return [piece for piece in taken if piece is not None]

    def _find(self, index: int) -> Progress:
        return self.samples.setdefault(index, Progress(index=index))


class Streams:
    """`request id -> who follows it`, of this process."""

    def __init__(self, threads: ThreadPoolExecutor | None = None) -> None:
        self.threads = threads or ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="streams")
        self.followers: dict[str, set[Follower]] = {}
        self.ended: set[str] = set()  # said to have ended, results not read yet
        self.delivery: asyncio.Task[None] | None = None

    async def submit(self, make: Callable[[], Sequence[SamplingCall]]) -> list[Follower]:
        """Queue the calls that `make` describes, all of them or none; their followers.

        They are there before the calls are: nothing that is said of a call falls between. What
        `make` looks up is read before anything is locked, which holds up who else writes.
        """
        loop = asyncio.get_running_loop()
        followers: list[Follower] = []

        def work() -> None:
            made = make()
            with transaction.atomic():
                submit_calls(made)
                followers.extend(Follower(call_id=call.pk, is_stored=False) for call in made)
                loop.call_soon_threadsafe(self._attach, followers)

        try:
            await self.look(work)
        except DatabaseError:  # at the end, as where it is busy for too long
            for follower in followers:
                self.leave(follower)
            raise
        for follower in followers:
            follower.is_stored = True
        return followers

    def expect(self, call_id: int) -> Follower:
        """Of a call that another thread is about to commit."""
        follower = Follower(call_id=call_id, is_stored=False)
        self._attach([follower])
        return follower

    async def find(self, call_id: int) -> Follower:
        """Of a call that there is already. Its pieces from now on, or its result."""
        follower = Follower(call_id=call_id)
        self._attach([follower])
        self.note_ended(await self.look(find_ended, [follower.request_id]))
        return follower

    async def follow(self, follower: Follower) -> AsyncGenerator[Piece | Ended, None]:
        """Pieces as they come, those that wait for a slow reader joined; the last is `Ended`."""
        try:
            while True:
                await follower.news.wait()
                follower.news.clear()
                ended = follower.ended
                for piece in follower.take():
                    yield piece
                if ended is not None:
                    yield ended
                    return
        finally:
            self.leave(follower)

    async def wait(self, follower: Follower) -> Ended:
        """For who wants the whole answer alone."""
        try:
            while follower.ended is None:
                await follower.news.wait()
                follower.news.clear()
            return follower.ended
        finally:
            self.leave(follower)

    async def cancel(self, follower: Follower) -> None:
        """Its watcher has gone: nobody needs the answer, and its server stops making it."""
        self.leave(follower)
        if follower.ended is None:
            await self.look(cancel_by_id, follower.call_id)

    def leave(self, follower: Follower) -> None:
        same = self.followers.get(follower.request_id, set())
        same.discard(follower)
        if not same:
            self.followers.pop(follower.request_id, None)

    def hear(self, message: str) -> None:
        """What a sampler published."""
        if self.followers:
            for request_id, piece in read_pieces(message):
                for follower in self.followers.get(request_id, ()):
                    follower.hear(piece)

    async def wake(self, request_id: str) -> None:
        self.note_ended([request_id])

    def note_ended(self, request_ids: Iterable[str]) -> None:
        """Those that somebody here follows are read, all that end meanwhile in one query."""
        self.ended.update(set(request_ids) & self.followers.keys())
        if self.ended and (self.delivery is None or self.delivery.done()):
            self.delivery = asyncio.create_task(self._deliver())

    async def sweep(self) -> None:
        """One query for everybody; wake-ups travel by Redis and may be lost."""
        if not self.followers:
            return
        try:
            self.note_ended(await self.look(find_ended, list(self.followers)))
        except DatabaseError as error:
            logger.warning("followed calls could not be looked after: %s", error)

    async def look(self, read: Callable[..., T], *arguments: Any) -> T:
        """On one of a few threads, each with its own connection that lasts."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, _read_fresh, read, *arguments)

    def _attach(self, followers: Iterable[Follower]) -> None:
        for follower in followers:
            self.followers.setdefault(follower.request_id, set()).add(follower)

    async def _deliver(self) -> None:
        while self.ended:
            request_ids, self.ended = self.ended, set()
            try:
                found = await self.look(read_ended, request_ids)
            except DatabaseError as error:
                logger.warning("results could not be read, the sweep will: %s", error)
                return
            for request_id, ended in found.items():
                for follower in self.followers.get(request_id, ()):
                    follower.end(ended)


def _read_fresh(read: Callable[..., T], *arguments: Any) -> T:
    close_old_connections()
    return read(*arguments)


def find_ended(request_ids: Iterable[str]) -> list[str]:
    """Those that have ended, or whose rows are gone."""
    wanted = list(request_ids)
    rows = SamplingCall.objects.filter(pk__in=_read_numbers(wanted)).exclude(status__in=ENDED)
    live = {f"{PREFIX}{pk}" for pk in rows.values_list("pk", flat=True)}
    return [request_id for request_id in wanted if request_id not in live]


def read_ended(request_ids: Iterable[str]) -> dict[str, Ended]:
    """Of a row that is gone it is said that it was cancelled."""
    wanted = list(request_ids)
    rows = SamplingCall.objects.filter(pk__in=_read_numbers(wanted)).values(*COLUMNS)
    found = {f"{PREFIX}{row.pop('pk')}": row for row in rows}
    return {
        request_id: _make_ended(**found[request_id]) if request_id in found else _make_gone()
        for request_id in wanted
        if request_id not in found or found[request_id]["status"] in ENDED
    }


def cancel_by_id(call_id: int) -> None:
    call = SamplingCall.objects.filter(pk=call_id).first()
    if call is not None:
        cancel_call(call)


def _make_ended(*, result: bytes | None, error_category: str, **columns: Any) -> Ended:
    try:
        read = orjson.loads(bytes(result)) if result else {}
    except orjson.JSONDecodeError:  # NaN: those that are read with it must not wait for ever
        read, error_category = {}, "server"
        columns |= {"status": Status.FAILED, "error": NOT_FINITE}
    return Ended(result=read, category=error_category, **columns)


def _make_gone() -> Ended:
    return Ended(
        status=Status.CANCELLED,
        result={},
        error="It was deleted.",
        category="user",
        created_at=now(),
        started_at=None,
        first_token_at=None,
        finished_at=None,
        is_gone=True,
    )


def _read_numbers(request_ids: Iterable[str]) -> list[int]:
    return [int(request_id.removeprefix(PREFIX)) for request_id in request_ids]
