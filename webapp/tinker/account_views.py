"""The Tinker wire, about the caller's own account: its key, and tokens that stand for it."""

from django.http import HttpResponse, JsonResponse

from webapp.accounts.models import ApiKey
from webapp.accounts.services import revoke_own_key
from webapp.accounts.tokens import make_token, read_end
from webapp.tinker.endpoints import TinkerRequest, endpoint

KEY_DIGITS = 12  # hexadecimal; the SDK's credentials file knows keys by a whole number


@endpoint("POST")
def token(request: TinkerRequest) -> JsonResponse:
    """A token for a token ends when the first one does."""
    key = read_key(request)
    until = read_end(request.headers["X-API-Key"])
    return JsonResponse({"jwt": make_token(key, until=until)})


@endpoint("GET", "DELETE")
def own_key(request: TinkerRequest) -> HttpResponse:
    """What `tinker auth login` keeps of a key, and how an older CLI's `logout` revokes it."""
    if request.method == "DELETE":
        revoke_own_key(actor=request.actor)
        return HttpResponse(status=204)
    key = read_key(request)
    return JsonResponse(
        {
            "key_id": int(key.digest[:KEY_DIGITS], 16),
            "name": key.name,
            "note": "",
            "details": {
                "org_details": {"name": key.project.name},
                "user_details": {"email": key.user.email or key.user.username},
            },
        }
    )


def read_key(request: TinkerRequest) -> ApiKey:
    return ApiKey.objects.select_related("project", "user").get(pk=request.actor.key_id)
