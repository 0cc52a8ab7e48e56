"""Heartbeats of sessions: answered from memory, and written together once a second."""

import asyncio
import json
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from django.db import DatabaseError
from django.utils.timezone import now

from webapp.accounts.models import Actor
from webapp.core.fields import read_fields
from webapp.runs.models import Session
from webapp.wire.door import Answer, Door, refuse
from webapp.wire.passes import JSON

PATH = "/api/v1/session_heartbeat"
REST_SECONDS = 1.0  # between two writes, and how long an end of a session may go unnoticed
MOST_REMEMBERED = 10_000
HEARD = json.dumps({"type": "session_heartbeat"}).encode()

logger = logging.getLogger(__name__)


class Heartbeats(Door):
    """`session -> its project`, of those that were open a moment ago, and which have beaten."""

    def __init__(self, threads: ThreadPoolExecutor | None = None) -> None:
        super().__init__(threads)
        self.open: dict[str, str] = {}
        self.beaten: set[str] = set()

    async def answer(self, actor: Actor, body: bytes) -> Answer:
        """410 ends the SDK's beating; whatever else goes wrong, it goes on."""
        session_id = read_fields(body).text("session_id")
        if session_id not in self.open:
            await self.learn(session_id)
        if self.open.get(session_id) != actor.project.pk:
            return refuse(410, f"The session {session_id[:100]} has ended.")
        self.beaten.add(session_id)
        return 200, JSON, HEARD

    async def learn(self, session_id: str) -> None:
        project_id = await self.look(find_project, session_id)
        if len(self.open) >= MOST_REMEMBERED:
            self.open.clear()
        if project_id is not None:
            self.open[session_id] = project_id

    async def begin(self) -> None:
        """Nobody could beat while nobody listened: no program is thought dead for that."""
        await self.note(None)

    async def write(self) -> None:
        """One UPDATE for all; who has ended meanwhile hears of it at the next beat."""
        beaten, self.beaten = self.beaten, set()
        if beaten:
            await self.note(beaten)

    async def note(self, session_ids: set[str] | None) -> None:
        try:
            ended = await self.look(note_beats, session_ids)
        except DatabaseError as error:
            logger.warning("heartbeats could not be noted: %s", error)
            self.beaten |= session_ids or set()
            return
        for session_id in ended:
            self.open.pop(session_id, None)

    async def write_for_ever(self) -> None:
        while True:
            await asyncio.sleep(REST_SECONDS)
            await self.write()


def find_project(session_id: str) -> str | None:
    """None: there is no such session, or it has ended."""
    found = Session.objects.filter(pk=session_id, finished_at=None)
    return found.values_list("project_id", flat=True).first()


def note_beats(session_ids: Iterable[str] | None) -> set[str]:
    """Of these sessions, or of all. Returns which of these have ended."""
    beating = Session.objects.filter(finished_at=None)
    if session_ids is not None:
        beating = beating.filter(pk__in=session_ids)
    num_noted = beating.update(heartbeat_at=now())
    wanted = set(session_ids or ())
    if num_noted >= len(wanted):
        return set()
    return wanted - set(beating.values_list("pk", flat=True))
