"""Heartbeats: answered from memory, written together, ended with their session."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from tests.webapp.tinker.conftest import Program
from tests.webapp.tinker.test_futures import ask, close
from webapp.runs.models import Session
from webapp.runs.services import finish_session
from webapp.wire import heartbeats
from webapp.wire.heartbeats import Heartbeats

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
async def beats() -> AsyncIterator[Heartbeats]:
    parked = Heartbeats()
    yield parked
    await close(parked)


@pytest.fixture
def session(program: Program) -> Session:
    long_ago = now() - timedelta(hours=1)
    actor = program.actor
    return Session.objects.create(project=actor.project, user=actor.user, heartbeat_at=long_ago)


async def beat(beats: Heartbeats, program: Program, session_id: Any) -> tuple[int, Any]:
    return await ask(beats, program, json.dumps({"session_id": session_id}).encode())


async def is_fresh(session: Session) -> bool:
    await sync_to_async(session.refresh_from_db)()
    return session.heartbeat_at > now() - timedelta(minutes=1)


async def test_a_heartbeat_is_answered_at_once_and_written_with_the_next_ones(
    beats: Heartbeats, program: Program, session: Session
) -> None:
    assert await beat(beats, program, session.pk) == (200, {"type": "session_heartbeat"})
    assert not await is_fresh(session)
    await beats.write()
    assert await is_fresh(session)


async def test_a_session_that_ended_stops_its_heartbeats(
    beats: Heartbeats, program: Program, session: Session
) -> None:
    assert (await beat(beats, program, session.pk))[0] == 200
    await sync_to_async(finish_session)(session, reason="success")
    await beats.write()
    status, answer = await beat(beats, program, session.pk)
    assert (status, "has ended" in answer["detail"]) == (410, True)
    assert not await is_fresh(session)


async def test_200_sessions_beat_for_the_price_of_one_query(
    beats: Heartbeats, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_some() -> list[str]:
        actor = program.actor
        rows = [Session(project=actor.project, user=actor.user) for _ in range(200)]
        return [row.pk for row in Session.objects.bulk_create(rows)]

    session_ids = await sync_to_async(open_some)()
    for session_id in session_ids:
        await beat(beats, program, session_id)
    await beats.write()
    looks: list[Any] = []
    look = heartbeats.note_beats

    def count(given: Any) -> Any:
        with CaptureQueriesContext(connection) as captured:
            ended = look(given)
        looks.append(len(captured))
        return ended

    monkeypatch.setattr(heartbeats, "note_beats", count)
    monkeypatch.setattr(heartbeats, "find_project", None)  # whoever asks breaks
    for session_id in session_ids:
        assert (await beat(beats, program, session_id))[0] == 200
    await beats.write()
    await beats.write()
    assert looks == [1]


async def test_what_a_stranger_beats_has_ended_for_them(
    beats: Heartbeats, program: Program, stranger: Program, session: Session
) -> None:
    assert (await beat(beats, stranger, session.pk))[0] == 410
    assert (await beat(beats, program, session.pk))[0] == 200
    assert (await beat(beats, stranger, session.pk))[0] == 410
    assert (await beat(beats, program, "ses-none"))[0] == 410
    assert (await beat(beats, program, 5))[0] == 400
    assert (await ask(beats, None, b"{}"))[0] == 401


async def test_nobody_is_thought_dead_for_silence_while_the_server_was_away(
    beats: Heartbeats, session: Session
) -> None:
    await beats.begin()
    assert await is_fresh(session)


async def test_beats_that_could_not_be_written_are_written_later(
    beats: Heartbeats, program: Program, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> Any:
        raise DatabaseError

    await beat(beats, program, session.pk)
    with monkeypatch.context() as broken:
        broken.setattr(heartbeats, "note_beats", fail)
        await beats.write()
    await beats.write()
    assert await is_fresh(session)


async def test_memory_does_not_grow_with_the_sessions_ever_seen(
    beats: Heartbeats, program: Program, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "MOST_REMEMBERED", 1)
    beats.open["ses-old"] = "prj-old"
    await beat(beats, program, session.pk)
    assert beats.open == {session.pk: program.actor.project.pk}
