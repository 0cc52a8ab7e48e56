"""Tells the web processes of answers' pieces, those of all calls in as few messages as it can."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from webapp.core.events import publish_pieces
from webapp.deployments.pieces import Piece, join_pieces, write_pieces

REST_SECONDS = 0.01  # between two messages; a reader's eye takes ten times as long


@dataclass(slots=True, eq=False)
class Publisher:
    """The first piece goes at once; what comes while a message is on its way goes with the next."""

    waiting: defaultdict[tuple[str, int], list[Piece]] = field(
        default_factory=lambda: defaultdict(list)
    )
    sending: asyncio.Task[None] | None = None

    def say(self, request_id: str, piece: Piece) -> None:
        self.waiting[request_id, piece.index].append(piece)
        if self.sending is None or self.sending.done():
            self.sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while self.waiting:
            waiting, self.waiting = self.waiting, defaultdict(list)
            joined = [(key[0], join_pieces(pieces)) for key, pieces in waiting.items()]
            await asyncio.to_thread(publish_pieces, write_pieces(joined))
            await asyncio.sleep(REST_SECONDS)
