"""What a recipe does while it waits: stays the run's driver, and hears who wants it to end."""

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from celery.signals import worker_shutting_down

from webapp.runs import driving
from webapp.runs.driving import Interrupted
from webapp.runs.models import Run

RENEW_SECONDS = 5.0
T = TypeVar("T")

shutting_down = threading.Event()


class ProcessEnds(Interrupted):
    """The process is told to end: another one takes the run up where it is."""


@worker_shutting_down.connect
def leave_runs(**_: object) -> None:
    shutting_down.set()


@dataclass(slots=True, kw_only=True, eq=False)
class KeepGoing:
    """Called while the recipe waits: stays the driver, and hears Stop."""

    run: Run
    hears_wishes: bool = True
    renewed_at: float = field(default=0.0)

    def __call__(self) -> None:
        if shutting_down.is_set():
            raise ProcessEnds
        if time.monotonic() - self.renewed_at < RENEW_SECONDS:
            return
        driving.renew_driver(self.run)
        self.renewed_at = time.monotonic()
        if self.hears_wishes:
            driving.check_stop(self.run)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """A long read renews the lease too."""
        for item in items:
            self()
            yield item
