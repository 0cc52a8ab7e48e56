"""Hints that something changed, sent after commit. One that is lost costs seconds."""

import json
from contextlib import suppress
from functools import partial
from typing import Any

from django.conf import settings
from django.db import transaction
from redis import Redis, RedisError

FINISHED = "hone.finished"  # request ids that parked polls wait for
PIECES = "hone.pieces"  # [{"id", ...}]: parts of answers that somebody may be watching
CHANGED = "hone.changed"  # {"group", "what"} for the pages that watch
WORK = "hone.work"  # how often runs have got something to do

_connections: dict[str, Redis] = {}


def run_group(run_id: str) -> str:
    return f"run.{run_id}".replace(":", ".")


def project_group(project_id: str) -> str:
    return f"project.{project_id}"


def publish(group: str, what: str) -> None:
    """Tell a group's viewers what changed: status, metrics, samples, log, checkpoints, evals."""
    message = json.dumps({"group": group, "what": what})
    transaction.on_commit(partial(_send, CHANGED, message))


def wake(request_id: str) -> None:
    """Tell every web process that a request's result is there."""
    transaction.on_commit(partial(_send, FINISHED, request_id))


def publish_pieces(message: bytes) -> None:
    """Parts of answers, at once: no row changes by them."""
    _send(PIECES, message)


def _send(channel: str, message: str | bytes) -> None:
    # Who waits for a lost hint asks the database again in a few seconds.
    with suppress(RedisError):
        connection().publish(channel, message)


def count_work() -> None:
    """Tell busy gpu workers, which read no messages, that it is time to look for work."""
    transaction.on_commit(_count_work)


def _count_work() -> None:
    with suppress(RedisError):
        connection().incr(WORK)


def read_work_count() -> int | None:
    """None: it cannot be read."""
    try:
        count: Any = connection().get(WORK)
    except RedisError:
        return None
    return int(count or 0)


def work_channel(name: str) -> str:
    return f"{WORK}.{name}"


def call_worker(name: str) -> bool:
    """Tell this gpu worker, now, that there is work. False: it does not listen."""
    try:
        return bool(connection().publish(work_channel(name), ""))
    except RedisError:
        return False


def connection() -> Redis:
    """One pooled client a process; redis-py's pool is safe between threads."""
    url = settings.REDIS_URL
    if url not in _connections:
        _connections[url] = Redis.from_url(url, socket_timeout=5)
    return _connections[url]
