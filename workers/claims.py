"""Work that one process does at a time: a lock on a file, which ends with the process."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from django.conf import settings

MAX_ATTEMPTS = 3  # work under which processes end is given up


@contextmanager
def claim(name: str) -> Iterator[int]:
    """Which attempt at it this is, from 1; 0: another process, or thread, is at it."""
    folder = settings.HONE_HOME / "locks"
    folder.mkdir(exist_ok=True)
    path = folder / name
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield 0
            return
        lock.write(b".")  # stays where the process does not come back from it
        lock.flush()
        yield path.stat().st_size
        path.unlink()


def forget_attempts(name: str) -> None:
    """The process that claimed it got on with it: those before it are not to blame any more."""
    with suppress(FileNotFoundError):
        os.truncate(settings.HONE_HOME / "locks" / name, 1)
