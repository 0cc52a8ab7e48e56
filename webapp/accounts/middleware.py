"""Finds the actor of a page request: the signed-in user in their current project."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from webapp.accounts.models import Actor, User
from webapp.accounts.services import find_actor_of_user

PROJECT_IN_SESSION = "project"
# Paths for whoever is in no project yet; keys and the SDK bring a project of their own.
WITHOUT_PROJECT = ("/projects/new/", "/sign-", "/admin/", "/rest/", "/api/", "/static/", "/healthz")


class ActorRequest(HttpRequest):
    """A request that has passed `ActorMiddleware` and a login check."""

    actor: Actor
    user: User


class ActorMiddleware:
    """Sets `request.actor`; None where nobody is signed in."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        user = request.user
        project_id = request.session.get(PROJECT_IN_SESSION)
        actor = find_actor_of_user(user, project_id=project_id) if isinstance(user, User) else None
        request.actor = actor  # type: ignore[attr-defined]
        if isinstance(user, User) and actor is None and not _works_alone(request.path):
            return redirect("project-new")
        return self.get_response(request)


def _works_alone(path: str) -> bool:
    return path.startswith(WITHOUT_PROJECT)
