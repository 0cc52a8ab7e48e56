"""A gpu worker hears of work through Redis, and Celery is sent where it does not listen."""

import os
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event

import pytest
from django.db import DatabaseError
from pytest_django import Settings
from redis import BusyLoadingError, ConnectionError, Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from tests.workers.cast import Program
from webapp.core.dispatch import GPU_TURN
from webapp.core.events import call_worker
from webapp.runs import queue
from workers import ear
from workers.ear import Ear
from workers.management.commands.up import Command
from workers.processes import Crew

PATIENCE = Retry(ConstantBackoff(0.05), 1200, (ConnectionError, BusyLoadingError))
SECONDS = 30.0  # until which a thing that must happen has happened


@pytest.fixture
def _redis(settings: Settings, tmp_path: Path) -> Iterator[None]:
    """A Valkey server of this test."""
    (tmp_path / "logs").mkdir()
    crew = Crew([], say=lambda _: None)
    environment = {key: value for key, value in os.environ.items() if key != "REDIS_URL"}
    Command().start_valkey(crew, environment, tmp_path)
    try:
        settings.REDIS_URL = environment["REDIS_URL"]
        with Redis.from_url(settings.REDIS_URL, retry=PATIENCE) as server:
            assert server.ping()
        yield
    finally:
        crew.end()


def wait_until_heard(name: str) -> None:
    waiting = Event()
    while not call_worker(name):
        waiting.wait(0.01)


@pytest.mark.usefixtures("_redis")
def test_a_call_is_heard_and_many_calls_at_once_are_one() -> None:
    acted, go_on = SimpleQueue[int](), Event()

    def act() -> None:
        acted.put(1)
        go_on.wait(SECONDS)

    listener = Ear("w1", act)
    listener.start()
    try:
        assert acted.get(timeout=SECONDS)  # for what came before it listened
        wait_until_heard("w1")
        assert call_worker("w1")
        assert call_worker("w1")
        assert not call_worker("w2")
        go_on.set()
        assert acted.get(timeout=SECONDS)
    finally:
        listener.stop()
    with pytest.raises(Empty):
        acted.get_nowait()
    assert not call_worker("w1")


@pytest.mark.usefixtures("_redis")
def test_a_database_that_does_not_answer_makes_nobody_deaf() -> None:
    acted = SimpleQueue[int]()

    def act() -> None:
        acted.put(1)
        raise DatabaseError("busy")

    listener = Ear("w1", act)
    listener.start()
    try:
        assert acted.get(timeout=SECONDS)
        wait_until_heard("w1")
        assert acted.get(timeout=SECONDS)
    finally:
        listener.stop()


def test_without_redis_a_worker_waits_for_celery(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    monkeypatch.setattr(ear, "WAIT_SECONDS", 0.01)
    listener = Ear("w1", lambda: None)
    listener.start()
    listener.stop()
    assert not call_worker("w1")


@pytest.mark.django_db
@pytest.mark.parametrize("listens", [False, True])
def test_celery_is_sent_only_to_a_worker_that_does_not_listen(
    monkeypatch: pytest.MonkeyPatch,
    django_capture_on_commit_callbacks: object,
    listens: bool,
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(queue, "send_task", lambda name, queue: sent.append(f"{name} {queue}"))
    monkeypatch.setattr(queue, "call_worker", lambda name: listens and name == "w1")
    program = Program()
    queue.lease_run(program.run, worker=queue.name_holder("w1", "a"))
    with django_capture_on_commit_callbacks(execute=True):  # type: ignore[operator]
        program.create()
    assert sent == ([] if listens else [f"{GPU_TURN} gpu.w1"])
