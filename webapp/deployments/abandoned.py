"""Samples that nobody looks for any more: of runs that were stopped, of clients that have gone."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import timedelta

from django.db import transaction
from django.utils.timezone import now

from webapp.core.events import wake
from webapp.deployments.calls import LIVE, cancel_call, take_number
from webapp.deployments.models import SamplingCall
from webapp.runs.models import Run, Session

SILENCE = timedelta(seconds=120)  # the SDK beats every 10 s, and speaks of trouble after as long

Status = SamplingCall.Status


def cancel_unwanted() -> int:
    """Of a client that has closed, and of a run that was stopped. What runs already may end."""
    owners = _list_owners((Status.QUEUED,))
    stopped = Run.objects.filter(pk__in=owners, status=Run.Status.CANCELLED)
    of_runs = SamplingCall.objects.filter(
        status=Status.QUEUED, owner__in=stopped.values_list("pk", flat=True)
    )
    num_cancelled = sum(cancel_call(call) for call in of_runs)
    closed = Session.objects.filter(pk__in=owners, finished_at__isnull=False)
    error = "The session of this sampling client has ended."
    return num_cancelled + _end_all(closed, (Status.QUEUED,), Status.CANCELLED, error)


def drop_lost() -> int:
    """Programs that were killed say nothing: the next one must not wait behind their samples.

    One that was only cut off is told to ask again, which the SDK does by itself.
    """
    owners = _list_owners(LIVE)
    silent = Session.objects.filter(
        pk__in=owners, finished_at=None, heartbeat_at__lt=now() - SILENCE
    )
    return _end_all(silent, LIVE, Status.LOST, "Its program was silent for two minutes.")


def _list_owners(statuses: Iterable[str]) -> set[str]:
    """Each status by itself: each has an index of its own, and both together have none."""
    found: set[str] = set()
    for status in statuses:
        live = SamplingCall.objects.filter(status=status).order_by()
        found.update(live.values_list("owner", flat=True).distinct())
    return found


def _end_all(sessions: Iterable[Session], statuses: Iterable[str], status: str, error: str) -> int:
    num_ended = 0
    for session in sessions:
        by_sampler: defaultdict[str, list[int]] = defaultdict(list)
        for each in statuses:
            live = SamplingCall.objects.filter(status=each, owner=session.pk)
            for pk, sampler_id in live.values_list("pk", "sampling_session_id"):
                by_sampler[sampler_id].append(pk)
        for sampler_id, pks in by_sampler.items():
            num_ended += _end_some(sampler_id, pks, status, error)
    return num_ended


@transaction.atomic
def _end_some(sampler_id: str, pks: list[int], status: str, error: str) -> int:
    """Under one number of their sampling session; parked polls hear of it by their sweep."""
    live = SamplingCall.objects.filter(pk__in=pks, status__in=LIVE)
    columns = {"status": status, "error": error, "finished_at": now(), "claim_until": None}
    num_ended = live.update(end_number=take_number(sampler_id), **columns)
    wake(sampler_id)
    return num_ended
