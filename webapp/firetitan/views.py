"""Accounts: a key has exactly one, its project."""

from typing import Any

from django.http import JsonResponse

from webapp.accounts.models import Project
from webapp.firetitan.endpoints import FiretitanRequest, check_account, endpoint


@endpoint("GET")
def accounts(request: FiretitanRequest) -> JsonResponse:
    found = [describe_account(request.actor.project)]
    return JsonResponse({"accounts": found, "nextPageToken": "", "totalSize": 1})


@endpoint("GET")
def account(request: FiretitanRequest, account: str) -> JsonResponse:
    check_account(request.actor, account)
    return JsonResponse(describe_account(request.actor.project))


def describe_account(project: Project) -> dict[str, Any]:
    return {
        "name": f"accounts/{project.pk}",
        "displayName": project.name,
        "state": "READY",
        "createTime": project.created_at.isoformat(),
    }
