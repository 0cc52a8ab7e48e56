"""Hears at once that there is work: a Celery message takes some milliseconds, which a step feels.

What is heard may be lost, as any hint: Celery's kicks and the periodic look find the work then.
"""

import logging
import threading
from collections.abc import Callable

from django.db import DatabaseError, close_old_connections
from redis import RedisError
from redis.client import PubSub

from webapp.core.events import connection, work_channel

WAIT_SECONDS = 0.5  # and then a look whether to stop

logger = logging.getLogger(__name__)


class Ear:
    """A thread that calls `act` for what is heard, once for all that came meanwhile.

    Whoever speaks is told how many hear it: while nobody does, Celery is sent instead.
    """

    def __init__(self, name: str, act: Callable[[], None]) -> None:
        self.channel = work_channel(name)
        self.act = act
        self.is_stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, name="ear", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.is_stopped.set()
        self.thread.join()

    def _run(self) -> None:
        while not self.is_stopped.is_set():
            try:
                with PubSub(connection().connection_pool, ignore_subscribe_messages=True) as pubsub:
                    pubsub.subscribe(self.channel)
                    self._listen(pubsub)
            except (RedisError, OSError) as error:
                logger.warning("work comes by Celery until Redis answers again: %s", error)
                self.is_stopped.wait(WAIT_SECONDS)

    def _listen(self, pubsub: PubSub) -> None:
        self._act()  # for what came before
        while not self.is_stopped.is_set():
            if pubsub.get_message(timeout=WAIT_SECONDS) is None:
                continue
            while pubsub.get_message() is not None:
                pass
            self._act()

    def _act(self) -> None:
        try:
            self.act()
        except DatabaseError as error:
            logger.warning("a turn ended early: %s", error)
        finally:
            close_old_connections()
