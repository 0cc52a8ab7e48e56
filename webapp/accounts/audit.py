"""Who changed what exists, or who may do what: one line each, in the transaction of the change."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.db.models import Q, QuerySet

from webapp.accounts.models import Actor, AuditEntry, Project, User
from webapp.core.errors import UserError

MOST_ENTRIES = 10_000  # of one day
# What the SDK may ask for, and the beginnings of the events that it means.
EVENT_TYPES = {
    "all": (),
    "checkpoints": ("checkpoint_",),
    "projects": ("project_", "session_", "run_"),
    "teams": ("member_",),
    "organizations": ("key_",),
}


def record_audit(*, project: Project | str, user: User | None, event: str, **details: Any) -> None:
    """`event` reads `<resource>_<what was done>`, such as checkpoint_deleted."""
    project_id = project if isinstance(project, str) else project.pk
    AuditEntry.objects.create(project_id=project_id, user=user, event=event, details=details)


def list_audit(actor: Actor, *, event_type: str, day: date) -> QuerySet[AuditEntry]:
    if event_type not in EVENT_TYPES:
        raise UserError(
            f"event_type is {event_type!r:.60}; send one of {', '.join(EVENT_TYPES)}.",
            field="event_type",
        )
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    wanted = Q()
    for beginning in EVENT_TYPES[event_type]:
        wanted |= Q(event__startswith=beginning)
    entries = AuditEntry.objects.select_related("user").filter(
        wanted, project=actor.project, at__gte=midnight, at__lt=midnight + timedelta(days=1)
    )
    return entries[:MOST_ENTRIES]
