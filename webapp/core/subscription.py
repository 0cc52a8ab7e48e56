"""The one Redis subscription of a web process: parked polls and open pages are woken from here."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable

from channels.layers import get_channel_layer
from django.conf import settings
from redis.asyncio import Redis
from redis.exceptions import RedisError

from webapp.core.events import CHANGED, FINISHED, PIECES

RECONNECT_SECONDS = 1.0
RECENT_SECONDS = 60.0  # a page that takes longer from its question to its socket misses something

logger = logging.getLogger(__name__)
Listener = Callable[[str], Awaitable[None]]

_finished_listeners: list[Listener] = []
_piece_listeners: list[Callable[[str], None]] = []
_recent: dict[tuple[str, str], float] = {}  # (group, what) -> when, the oldest first


def on_finished(listener: Listener) -> None:
    """Call `listener(request_id)` in the event loop for each request that has ended."""
    _finished_listeners.append(listener)


def on_pieces(listener: Callable[[str], None]) -> None:
    """Call `listener(message)` in the event loop for each message with parts of answers."""
    _piece_listeners.append(listener)


def list_recent(group: str, seconds: float) -> list[str]:
    """What has changed for a group's viewers in the last seconds."""
    since = time.monotonic() - seconds
    return [what for (whose, what), at in _recent.items() if whose == group and at >= since]


def remember(group: str, what: str) -> None:
    now = time.monotonic()
    _recent.pop((group, what), None)
    _recent[group, what] = now
    while _recent[oldest := next(iter(_recent))] < now - RECENT_SECONDS:
        del _recent[oldest]


async def listen_for_ever() -> None:
    """Runs as long as the process; a lost connection is made again."""
    while True:
        try:
            await _listen()
        except (RedisError, OSError) as error:
            logger.warning("no hints until Redis answers again: %s", error)
            await asyncio.sleep(RECONNECT_SECONDS)


async def _listen() -> None:
    redis = Redis.from_url(settings.REDIS_URL)
    async with redis, redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(FINISHED, CHANGED, PIECES)
        async for message in pubsub.listen():
            await _pass_on(message["channel"].decode(), message["data"].decode())


async def _pass_on(channel: str, data: str) -> None:
    if channel == FINISHED:
        for listener in _finished_listeners:
            await listener(data)
        return
    if channel == PIECES:
        for hear in _piece_listeners:
            hear(data)
        return
    hint = json.loads(data)
    remember(hint["group"], hint["what"])
    layer = get_channel_layer()
    await layer.group_send(hint["group"], {"type": "changed", "what": hint["what"]})
