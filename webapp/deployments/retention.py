"""What of sampling is forgotten: answers of yesterday, and what closed clients leave behind."""

from collections.abc import Iterable

from django.utils.timezone import now

from webapp.deployments.models import SamplingCall, SamplingSession
from webapp.runs.models import Session
from webapp.runs.retention import AT_ONCE, KEPT

Purpose = SamplingCall.Purpose

# A playground's conversation is made of its calls, and a run asks by them what it has sampled.
FORGOTTEN = (Purpose.TINKER, Purpose.REST, Purpose.EVALUATION)


def forget_calls(*, limit: int = AT_ONCE) -> int:
    """Results that nobody fetched in a day; evaluations keep theirs in rows of their own."""
    old = SamplingCall.objects.filter(finished_at__lt=now() - KEPT, purpose__in=FORGOTTEN)
    pks = list(old.order_by("finished_at").values_list("pk", flat=True)[:limit])
    num_deleted, _ = SamplingCall.objects.filter(pk__in=pks).delete()
    return num_deleted


def forget_sessions(*, limit: int = AT_ONCE) -> int:
    """Clients that closed a day ago and left no run; their samplers, once nothing asks by them."""
    before = now() - KEPT
    samplers = SamplingSession.objects.filter(session__finished_at__lt=before, calls=None)
    num_samplers = _delete_some(SamplingSession, samplers.values_list("pk", flat=True)[:limit])
    sessions = Session.objects.filter(finished_at__lt=before, runs=None, sampling_sessions=None)
    num_sessions = _delete_some(Session, sessions.values_list("pk", flat=True)[:limit])
    return num_samplers + num_sessions


def _delete_some(model: type[SamplingSession | Session], chosen: Iterable[str]) -> int:
    num_deleted, _ = model.objects.filter(pk__in=list(chosen)).delete()
    return num_deleted
