"""What every endpoint of the Fireworks dialect shares: methods, a key, a JSON body."""

from collections.abc import Mapping

from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from webapp.accounts.credentials import NO_KEY, READ_ONLY, WRONG_KEY, find_actor
from webapp.accounts.models import Actor
from webapp.core.errors import NotFound
from webapp.firetitan.errors import refuse
from webapp.wire.endpoints import KeyedRequest, make_endpoint

KEY_VARIABLE = "FIREWORKS_API_KEY"


FiretitanRequest = KeyedRequest


def admit(request: FiretitanRequest) -> JsonResponse | None:
    """A viewer's key reads only."""
    secret = read_key(request.headers)
    if not secret:
        return refuse(NO_KEY.format(variable=KEY_VARIABLE), 401)
    actor = find_actor(secret)
    if actor is None:
        return refuse(WRONG_KEY.format(variable=KEY_VARIABLE), 401)
    if request.method != "GET" and not actor.can_write:
        return refuse(READ_ONLY, 403)
    request.actor = actor
    return None


endpoint = make_endpoint(admit, refuse)


def read_key(headers: Mapping[str, str]) -> str:
    """Some calls of the SDK carry the one header, some the other, some both."""
    scheme, _, secret = headers.get("Authorization", "").partition(" ")
    bearer = secret.strip() if scheme.lower() == "bearer" else ""
    return headers.get("X-Api-Key") or bearer


def check_account(actor: Actor, account: str) -> None:
    """A key knows one account, its project's."""
    if account != actor.project.pk:
        raise NotFound(
            f"There is no account {account[:60]} for this API key: its own is {actor.project.pk}."
        )


@csrf_exempt
def answer_unknown(request: HttpRequest, **_: str) -> JsonResponse:
    return refuse(f"There is no {request.path[:300]} here.", 404)
