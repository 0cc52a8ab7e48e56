"""One request and its answer, whole or as a stream: followed while its client is there."""

import asyncio
from collections.abc import Sequence
from typing import Any

from webapp.core.event_streams import EventStream
from webapp.deployments.models import SamplingCall
from webapp.deployments.pieces import Piece
from webapp.deployments.streams import Ended, Follower, Streams
from webapp.openai.errors import Refused, write_json
from webapp.openai.forms import Form, Result

ALIVE_SECONDS = 10.0  # between signs of life while a model loads or a prompt is read
DONE = b"[DONE]"

Status = SamplingCall.Status


class Exchange:
    """The calls of one request are followed, told and, if their client goes, cancelled."""

    def __init__(self, streams: Streams, form: Form, followers: Sequence[Follower]) -> None:
        self.streams = streams
        self.form = form
        self.followers = followers
        self.num_concurrent = len(streams.followers)
        self.results: dict[int, Result] = {}
        self.has_begun = False

    async def answer(self) -> list[Result]:
        """All results. Refused: one of the calls did not end well."""
        waits = (self.streams.wait(follower) for follower in self.followers)
        return [self._read(ended) for ended in await asyncio.gather(*waits)]

    async def stream(self, events: EventStream) -> None:
        """Refused is raised before the first event; after it, it is one."""
        news: asyncio.Queue[tuple[int, Piece | Ended]] = asyncio.Queue(maxsize=1)
        pumps = [
            asyncio.create_task(self._pump(place, follower, news))
            for place, follower in enumerate(self.followers)
        ]
        try:
            await self._pass_all_on(news, events)
        except Refused as refused:
            if not events.has_begun:
                raise
            await events.send(write_json(in_stream(refused)))
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        await events.send(DONE)
        await events.end()

    async def cancel(self) -> None:
        """What has not ended: nobody waits for it any more."""
        for follower in self.followers:
            await self.streams.cancel(follower)

    async def _pump(
        self, place: int, follower: Follower, news: asyncio.Queue[tuple[int, Piece | Ended]]
    ) -> None:
        async for each in self.streams.follow(follower):
            await news.put((place, each))

    async def _pass_all_on(
        self, news: asyncio.Queue[tuple[int, Piece | Ended]], events: EventStream
    ) -> None:
        while len(self.results) < len(self.followers):
            try:
                async with asyncio.timeout(ALIVE_SECONDS):
                    place, each = await news.get()
            except TimeoutError:
                await events.say_alive()
                continue
            await self._pass_on(place, each, events)
        await self._send(events, self.form.close(self._list_results()))

    async def _pass_on(self, place: int, news: Piece | Ended, events: EventStream) -> None:
        if isinstance(news, Ended):
            self.results[place] = self._read(news)
            chunks = self.form.end(place, self.results[place])
        else:
            chunks = self.form.tell(place, news)
        await self._send(events, chunks)

    async def _send(self, events: EventStream, chunks: Any) -> None:
        first = [] if self.has_begun else self.form.begin()
        self.has_begun = True
        await events.send(*map(write_json, (*first, *chunks)))

    def _list_results(self) -> list[Result]:
        return [self.results[place] for place in range(len(self.followers))]

    def _read(self, ended: Ended) -> Result:
        if ended.is_done:
            return Result(ended=ended, num_concurrent=self.num_concurrent)
        is_own = ended.category == "user" or ended.status != Status.FAILED
        raise Refused(400 if is_own else 500, ended.error)


def in_stream(refused: Refused) -> dict[str, Any]:
    """The status has been sent already: it is said again inside."""
    return {"error": {**refused.body["error"], "status_code": refused.status}}
