"""Which sessions a program looks for, in the words of the SDK's search."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, OuterRef, Q, Subquery, Sum, Value
from django.db.models.fields.json import KeyTransform
from django.db.models.functions import Coalesce
from django.utils.dateparse import parse_datetime

from webapp.accounts.models import USER_URN, Actor
from webapp.checkpoints.models import Checkpoint
from webapp.core.errors import NotFound, UserError
from webapp.core.fields import Fields
from webapp.runs.models import Session, SessionQuerySet
from webapp.runs.services import FINISH_REASONS

MOST_PAIRS = 32  # of user_metadata
MOST_OWNERS = 10
YEARS = range(1970, 9999)  # beyond, a change of zone has no date


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    sessions: list[Session]
    has_more: bool


def search(actor: Actor, fields: Fields) -> Page:
    limit = fields.whole("limit", 50, least=1, most=200)
    check_projects(actor, fields.list_of("project_ids", str) if fields.has("project_ids") else [])
    wanted = name_one(fields) & choose_owner(actor, fields.inner("owner")) & choose_status(fields)
    found = filter_metadata(Session.objects.in_project(actor), fields.inner("user_metadata"))
    found = found.filter(wanted & begin_after(fields)).order_by("-created_at", "-pk")
    rows = list(measure(found)[: limit + 1])
    return Page(sessions=rows[:limit], has_more=len(rows) > limit)


def check_projects(actor: Actor, project_ids: list[str]) -> None:
    """A key sees its own project alone."""
    other = next((each for each in project_ids if each != actor.project.pk), None)
    if other is not None:
        raise NotFound(f"There is no project {other[:60]} that this key may read.")


def name_one(fields: Fields) -> Q:
    """By id or by name: a session that matches either one matches."""
    chosen = Q()
    if fields.has("session_id"):
        chosen |= Q(pk=fields.text("session_id"))
    if fields.has("display_name"):
        words = fields.text("display_name").split()
        named = Q(~Q(display_name=""))
        for word in words[:MOST_PAIRS]:
            named &= Q(display_name__icontains=word)
        chosen |= named
    return chosen


def choose_owner(actor: Actor, owner: Fields) -> Q:
    kind = owner.text("type", "own")
    if kind == "accessible":
        return Q()
    if kind == "own":
        return Q(user=actor.user)
    if kind != "user":
        raise UserError(f"owner.type is {kind:.40}; send own, accessible or user.")
    urns = owner.list_of("owner_urns", str)
    if not 1 <= len(urns) <= MOST_OWNERS:
        raise UserError(f"owner.owner_urns names 1 to {MOST_OWNERS} users.")
    numbers = [urn.removeprefix(USER_URN) for urn in urns]
    if not all(number.isdecimal() and len(number) <= 18 for number in numbers):
        raise UserError(f"owner.owner_urns are of the form {USER_URN}1.")
    return Q(user__in=[int(number) for number in numbers])


def choose_status(fields: Fields) -> Q:
    """Any of these. Nothing here cancels a session or fails one as a whole, so none is either."""
    if not fields.has("statuses"):
        return Q()
    chosen = Q(pk=None)
    for index, given in enumerate(fields.list_of("statuses", dict)):
        status = Fields(given, f"statuses.{index}.")
        kind = status.text("type")
        if kind == "active":
            chosen |= Q(finished_at=None)
        elif kind == "client_finished":
            reasons = status.list_of("reasons", str) if status.has("reasons") else FINISH_REASONS
            chosen |= Q(finished_at__isnull=False, finish_reason__in=reasons)
        elif kind not in ("cancelled", "failed"):
            raise UserError(f"statuses.{index}.type is {kind:.40}; send active or client_finished.")
    return chosen


def filter_metadata(sessions: SessionQuerySet, pairs: Fields) -> SessionQuerySet:
    """Every pair holds."""
    if len(pairs.values) > MOST_PAIRS:
        raise UserError(f"user_metadata has more than {MOST_PAIRS} pairs.", field="user_metadata")
    for index, key in enumerate(pairs.values):
        if is_number(key):
            raise UserError(
                f"user_metadata.{key:.60} cannot be searched for: databases take a name that is a"
                " number for a place in a list.",
                field="user_metadata",
            )
        name = f"metadata_{index}"
        value = KeyTransform(key, "user_metadata")
        sessions = sessions.alias(**{name: value}).filter(**{name: pairs.text(key)})
    return sessions


def is_number(key: str) -> bool:
    try:
        int(key)
    except ValueError:
        return False
    return True


def begin_after(fields: Fields) -> Q:
    """The page after the one that ended with this session."""
    if not fields.has("cursor"):
        return Q()
    cursor = fields.inner("cursor")
    last = read_time(cursor.text("last_created_at"), "cursor.last_created_at")
    same = Q(created_at=last, pk__lt=cursor.text("last_session_id"))
    return Q(created_at__lt=last) | same


def read_time(text: str, name: str) -> datetime:
    try:
        moment = parse_datetime(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or not YEARS[0] <= moment.year <= YEARS[-1]:
        raise UserError(f"{name} is {text!r:.60}; send a time with its zone.", field=name)
    return moment


def measure(sessions: SessionQuerySet) -> SessionQuerySet:
    """With how many checkpoints each has, and how large they are, in the same query."""
    kept = Checkpoint.objects.alive().filter(is_ephemeral=False, run__session=OuterRef("pk"))
    one = kept.order_by().values("run__session")
    return sessions.annotate(
        num_checkpoints=Coalesce(Subquery(one.annotate(n=Count("pk")).values("n")), Value(0)),
        num_bytes=Coalesce(Subquery(one.annotate(n=Sum("size_bytes")).values("n")), Value(0)),
    )


def describe_summary(session: Any) -> dict[str, Any]:
    return {
        "session_id": session.pk,
        "created_at": session.created_at.isoformat(),
        "owner": f"{USER_URN}{session.user_id}",
        "project_id": session.project_id,
        "status": describe_status(session),
        "checkpoints_count": session.num_checkpoints,
        "display_name": session.display_name or None,
        "user_metadata": write_metadata(session.user_metadata),
        "checkpoint_storage_bytes": session.num_bytes,
    }


def describe_status(session: Session) -> dict[str, Any] | None:
    """None: its program fell silent, and how it ended is not known."""
    if session.finished_at is None:
        return {"type": "active"}
    if session.finish_reason not in FINISH_REASONS:
        return None
    return {
        "type": "client_finished",
        "reason": {"type": session.finish_reason},
        "detail": session.finish_detail or None,
    }


def write_metadata(values: Mapping[str, Any]) -> dict[str, str]:
    """The SDK reads a map of strings."""
    return {key: str(value) for key, value in values.items()}
