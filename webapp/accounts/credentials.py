"""Who sends a request, by the key it carries; polls and heartbeats must not cost a query each."""

import time
from dataclasses import dataclass

from webapp.accounts.models import Actor
from webapp.accounts.services import find_actor_of_key, hash_key
from webapp.accounts.tokens import is_token, read_token

REMEMBER_SECONDS = 5.0  # a revoked key works for this much longer
MOST_REMEMBERED = 1000

# The variable is the one that a client reads its key from.
NO_KEY = "This request carries no API key: set {variable} to one from the Settings page."
WRONG_KEY = "This API key is unknown or was revoked: set {variable} to one from the Settings page."
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
    name = name_credential(secret)
    if actor is not None and name is not None:
        if len(_remembered) >= MOST_REMEMBERED:
            _remembered.clear()
        _remembered[name] = _Remembered(actor, time.monotonic() + REMEMBER_SECONDS)
    return actor


def recall_actor(secret: str) -> Actor | None:
    """Without a query. None: not seen in the last seconds."""
    name = name_credential(secret)
    known = _remembered.get(name) if name is not None else None
    return known.actor if known is not None and known.until > time.monotonic() else None


def name_credential(secret: str) -> str | None:
    """All tokens of a key are one: each program has its own. None: it is invalid."""
    if not is_token(secret):
        return hash_key(secret)
    claims = read_token(secret)
    return claims["key"] if claims else None


def forget_actors() -> None:
    _remembered.clear()
