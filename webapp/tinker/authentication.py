"""Who sends a request, by its X-API-Key; polls and heartbeats must not cost a query each."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from webapp.accounts.models import Actor
from webapp.accounts.services import find_actor_of_key, hash_secret

REMEMBER_SECONDS = 5.0  # a revoked key works for this much longer
MOST_REMEMBERED = 1000

NO_KEY = "This request carries no API key: set TINKER_API_KEY to one from the Settings page."
WRONG_KEY = (
    "This API key is unknown or was revoked: set TINKER_API_KEY to one from the Settings page."
)
INVALID_TOKEN = 'Bearer error="invalid_token"'  # by this the SDK gets itself another token
READ_ONLY = "The user of this API key is a viewer of its project: it may read, not change."


@dataclass(frozen=True, slots=True)
class _Remembered:
    actor: Actor
    until: float


_remembered: dict[str, _Remembered] = {}


def find_actor(secret: str) -> Actor | None:
    """None: no such key now."""
    known = recall_actor(secret)
    if known is not None:
        return known
    actor = find_actor_of_key(secret)
    if actor is not None:
        if len(_remembered) >= MOST_REMEMBERED:
            _remembered.clear()
        until = time.monotonic() + REMEMBER_SECONDS
        _remembered[hash_secret(secret)] = _Remembered(actor, until)
    return actor


def recall_actor(secret: str) -> Actor | None:
    """Without a query. None: not seen in the last seconds."""
    known = _remembered.get(hash_secret(secret))
    return known.actor if known is not None and known.until > time.monotonic() else None


def forget_actors() -> None:
    _remembered.clear()


def read_key(headers: Mapping[str, str]) -> str:
    return headers.get("x-api-key", "")
