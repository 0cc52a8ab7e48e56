"""Keys on REST requests: `X-API-Key: tml-...` or `Authorization: Bearer tml-...`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import SAFE_METHODS, BasePermission

from webapp.accounts.models import Actor, User
from webapp.accounts.services import find_actor_of_key

if TYPE_CHECKING:  # DRF's views read the settings that name this module
    from rest_framework.request import Request
    from rest_framework.views import APIView


class KeyAuthentication(BaseAuthentication):
    """A browser session does not open REST: a page of another site could use it."""

    def authenticate(self, request: Request) -> tuple[User, Actor] | None:
        secret = request.headers.get("X-API-Key") or _read_bearer(request)
        if not secret:
            return None
        actor = find_actor_of_key(secret)
        if actor is None:
            raise AuthenticationFailed("This API key is unknown or was revoked.")
        return actor.user, actor

    def authenticate_header(self, request: Request) -> str:  # noqa: ARG002 - DRF's signature
        return "Bearer"


def _read_bearer(request: Request) -> str:
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


class HasProject(BasePermission):
    """Viewers read; members and owners write."""

    message = "Your role in this project is viewer: it may read, not change."

    def has_permission(self, request: Request, view: APIView) -> bool:  # noqa: ARG002 - DRF's signature
        actor = request.auth
        return isinstance(actor, Actor) and (request.method in SAFE_METHODS or actor.can_write)


def actor_of(request: Request) -> Actor:
    """Who asks. Only behind `HasProject`."""
    return cast(Actor, request.auth)
