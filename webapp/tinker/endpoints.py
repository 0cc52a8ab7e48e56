"""What every endpoint of the Tinker wire shares: one method, a key, a JSON body."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from webapp.accounts.credentials import (
    INVALID_TOKEN,
    NO_KEY,
    READ_ONLY,
    WRONG_KEY,
    find_actor,
)
from webapp.accounts.models import Actor
from webapp.tinker.middleware import refuse


class TinkerRequest(HttpRequest):
    """A request that came with a key."""

    actor: Actor


View = Callable[..., HttpResponse]


def endpoint(*methods: str) -> Callable[[View], View]:
    """A viewer's key reads only; POST writes unless the view is marked as reading."""

    def decorate(view: View) -> View:
        @csrf_exempt  # keys, not cookies, open this door
        @wraps(view)
        def answer(request: TinkerRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            if request.method not in methods:
                return refuse(f"{request.path} answers {' and '.join(methods)} only.", 405)
            refusal = _admit(request)
            return refusal or view(request, *args, **kwargs)

        return answer

    return decorate


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
    """Sets `request.actor`, or says why not."""
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


def is_on_this_machine(request: HttpRequest) -> bool:
    """Whether the client sees our files: it reached us by loopback, and through no proxy."""
    is_loopback = request.META.get("REMOTE_ADDR") in ("127.0.0.1", "::1")
    return is_loopback and "X-Forwarded-For" not in request.headers
