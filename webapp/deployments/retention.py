"""What of sampling is forgotten: answers of yesterday, and what closed clients leave behind."""

from collections.abc import Iterable, Mapping
from datetime import UTC
from typing import Any, cast

from django.db import transaction
from django.db.models import F, Q, Sum
from django.db.models.functions import TruncHour
from django.utils.timezone import now

from webapp.deployments.models import (
    SampledHour,
    SamplingCall,
    SamplingCallQuerySet,
    SamplingSession,
)
from webapp.runs.models import Session
from webapp.runs.retention import AT_ONCE, KEPT

Purpose = SamplingCall.Purpose

# A playground's conversation is made of its calls, and a run asks by them what it has sampled.
TOKENS = ("num_prompt_tokens", "num_cached_tokens", "num_sampled_tokens")
FORGOTTEN = (
    *(Purpose.TINKER, Purpose.REST, Purpose.EVALUATION),
    *(Purpose.OPENAI, Purpose.FIRETITAN),
)
# A recipe that is taken up again asks for what it sampled, however long ago: not after its end.
REPLAYED = (Purpose.ROLLOUT, Purpose.JUDGE, Purpose.GENERATION)


def forget_calls(*, limit: int = AT_ONCE) -> int:
    """Results that nobody fetched in a day; evaluations keep theirs in rows of their own."""
    before = now() - KEPT
    is_over = Q(run=None) | Q(run__ended_at__lt=before)
    wanted = Q(purpose__in=FORGOTTEN) | (Q(purpose__in=REPLAYED) & is_over)
    old = SamplingCall.objects.filter(wanted, finished_at__lt=before)
    with transaction.atomic():
        # Two turns at once must not add up the same calls.
        mine = old.select_for_update(skip_locked=True, of=("self",)).order_by("finished_at")
        pks = list(mine.values_list("pk", flat=True)[:limit])
        keep_sums(SamplingCall.objects.filter(pk__in=pks))
        num_deleted, _ = SamplingCall.objects.filter(pk__in=pks).delete()
    return num_deleted


def keep_sums(calls: SamplingCallQuerySet) -> None:
    """A row for each hour of this turn: whoever reads adds them up."""
    summed = sum_by_hour(calls.filter(status=SamplingCall.Status.DONE))
    SampledHour.objects.bulk_create(
        SampledHour(
            project_id=row["project"],
            hour=row["hour"],
            base_model_id=row["base_model"],
            session_id=row["session"] or "",
            user_id=row["user"],
            **{name: row[f"sum_{name}"] for name in TOKENS},
        )
        for row in summed
        if row["sum_num_prompt_tokens"] or row["sum_num_sampled_tokens"]
    )


def sum_by_hour(calls: SamplingCallQuerySet) -> Iterable[Mapping[str, Any]]:
    """Tokens by project, hour, base model, session and its user."""
    grouped = calls.order_by().values(
        "project",
        "base_model",
        hour=TruncHour("finished_at", tzinfo=UTC),
        session=F("sampling_session__session"),
        user=F("sampling_session__session__user"),
    )
    return cast(
        Iterable[Mapping[str, Any]],
        grouped.annotate(**{f"sum_{name}": Sum(name) for name in TOKENS}),
    )


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
