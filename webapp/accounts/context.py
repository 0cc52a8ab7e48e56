"""What the frame of every page needs: the current project and the ones to switch to."""

from typing import Any

from django.http import HttpRequest

from webapp.accounts.models import Project, User


def shell(request: HttpRequest) -> dict[str, Any]:
    user = getattr(request, "user", None)
    if not isinstance(user, User):
        return {}
    return {
        "actor": getattr(request, "actor", None),
        "projects": Project.objects.filter(memberships__user=user),
    }
