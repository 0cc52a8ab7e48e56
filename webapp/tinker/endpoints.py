"""What every endpoint of the Tinker wire shares: one method, a key, a JSON body."""

from django.http import HttpRequest, JsonResponse

from webapp.accounts.credentials import (
    INVALID_TOKEN,
    NO_KEY,
    READ_ONLY,
    WRONG_KEY,
    find_actor,
)
from webapp.tinker.middleware import refuse
from webapp.wire.endpoints import KeyedRequest, make_endpoint

TinkerRequest = KeyedRequest
KEY_VARIABLE = "TINKER_API_KEY"
UNKNOWN = {"WWW-Authenticate": INVALID_TOKEN}
# What a viewer may POST. Whoever carries a key may also exchange it, and give it up. Whole paths:
# a checkpoint may have any name.
READING = frozenset(
    f"/api/v1/{path}"
    for path in (
        "get_info",
        "weights_info",
        "client/config",
        "client/dynamic_config",
        "telemetry",
        "sessions/search",
        "auth/token",
        "auth/apikey/me",
    )
)


def _admit(request: TinkerRequest) -> JsonResponse | None:
    """A viewer's key reads only; POST writes unless its path is one that reads."""
    secret = request.headers.get("X-API-Key", "")
    if not secret:
        return refuse(NO_KEY.format(variable=KEY_VARIABLE), 401, UNKNOWN)
    actor = find_actor(secret)
    if actor is None:
        return refuse(WRONG_KEY.format(variable=KEY_VARIABLE), 401, UNKNOWN)
    is_reading = request.method == "GET" or request.path_info in READING
    if not is_reading and not actor.can_write:
        return refuse(READ_ONLY, 403)
    request.actor = actor
    return None


endpoint = make_endpoint(_admit, refuse)


def is_on_this_machine(request: HttpRequest) -> bool:
    """Whether the client sees our files: it reached us by loopback, and through no proxy."""
    is_loopback = request.META.get("REMOTE_ADDR") in ("127.0.0.1", "::1")
    return is_loopback and "X-Forwarded-For" not in request.headers
