"""The caller's mistakes. Everything else that goes wrong is a bug and rises."""

import errno

from training.errors import shorten

DISK_FULL = "The server's disk is full. Nothing was stored; free some space and try again."


class UserError(Exception):
    """Shown to the caller as it is: names what and where, and what to change."""

    def __init__(self, message: str, *, field: str = "") -> None:
        self.message = shorten(message)
        super().__init__(self.message)
        self.field = field  # the form field or JSON key it belongs to; empty: the whole request


class NotFound(UserError):  # noqa: N818 - reads as the sentence it is
    """What may not be seen does not exist: one answer for another project's id and for none."""


class TooMany(UserError):  # noqa: N818 - reads as the sentence it is
    """For now: the same request finds room a little later."""


def choose_status(error: Exception) -> int:
    """Of HTTP, for a mistake of the caller's."""
    if isinstance(error, NotFound):
        return 404
    return 429 if isinstance(error, TooMany) else 400


def is_disk_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
