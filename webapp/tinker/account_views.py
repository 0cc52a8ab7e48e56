"""The Tinker wire, about the caller's own account: its key, and tokens that stand for it."""

from datetime import UTC, date, datetime
from typing import Any

from django.http import HttpResponse, JsonResponse
from django.utils.dateparse import parse_date
from django.utils.timezone import now

from webapp.accounts.audit import list_audit
from webapp.accounts.models import ApiKey, AuditEntry, Role
from webapp.accounts.services import revoke_own_key
from webapp.accounts.tokens import make_token, read_end
from webapp.core.errors import UserError
from webapp.tinker.catalog_views import check_project
from webapp.tinker.endpoints import TinkerRequest, endpoint
from webapp.tinker.middleware import refuse
from webapp.tinker.session_search import read_time
from webapp.tinker.usage import check_window, read_current_storage, read_usage

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


@endpoint("GET")
def usage(request: TinkerRequest) -> JsonResponse:
    window = check_window(
        read_moment(request, "starting_on"), read_moment(request, "ending_before")
    )
    return JsonResponse(read_usage(request.actor, window))


@endpoint("GET")
def checkpoint_storage(request: TinkerRequest) -> JsonResponse:
    check_project(request)
    return JsonResponse(read_current_storage(request.actor))


@endpoint("GET")
def audit(request: TinkerRequest) -> JsonResponse:
    """Owners only: it says who did what."""
    if request.actor.role != Role.OWNER:
        return refuse("Only an owner of the project reads its audit log.", 403)
    day = read_day(request.GET.get("day", ""))
    event_type = request.GET.get("event_type", "all")
    entries = list_audit(request.actor, event_type=event_type, day=day)
    return JsonResponse({"entries": [describe_entry(entry) for entry in entries]})


def read_moment(request: TinkerRequest, name: str) -> datetime:
    return read_time(request.GET.get(name, ""), name)


def read_day(text: str) -> date:
    """Today where none is given, by the clock of Greenwich."""
    if not text:
        return now().astimezone(UTC).date()
    try:
        day = parse_date(text)
    except ValueError:
        day = None
    if day is None or not 1970 <= day.year < 9999:
        raise UserError(f"day is {text!r:.40}; send one like 2026-11-25.", field="day")
    return day


def describe_entry(entry: AuditEntry) -> dict[str, Any]:
    who = {"user": entry.user.username, "user_urn": entry.user.urn} if entry.user else {}
    return {
        "timestamp": entry.at.isoformat(),
        "event": entry.event,
        "event_details": {**who, **entry.details},
        "tinker_path": entry.details.get("tinker_path"),
    }
