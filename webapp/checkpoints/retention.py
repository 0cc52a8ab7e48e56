"""Sampler weights of long runs: a loop saves some at each step, and drops them without a word.

Its session stays open, so none of them ever ends by itself. The longest unused go.
"""

from datetime import timedelta

from django.db.models import Count, Max, Sum
from django.db.models.functions import Coalesce
from django.utils.timezone import now

from webapp.checkpoints.models import Checkpoint, CheckpointQuerySet
from webapp.checkpoints.services import discard, without_work

KEPT_SAMPLERS = 32  # of one run: those that were sampled from last, however large
KEPT_BYTES = 16 * 2**30  # of one run: small adapters pile up by the hundred before it matters
IDLE = timedelta(minutes=10)


def retire_samplers() -> int:
    """How many went. What a client samples from at every step, such as a reference, stays."""
    heavy = (
        _list_passing()
        .values("run")
        .annotate(number=Count("pk"), total=Sum("size_bytes"))
        .filter(number__gt=KEPT_SAMPLERS, total__gt=KEPT_BYTES)
        .order_by()
    )
    return sum(_retire_of(run_id) for run_id in heavy.values_list("run", flat=True))


def _list_passing() -> CheckpointQuerySet:
    return Checkpoint.objects.alive().filter(is_ephemeral=True, run__session__isnull=False)


def _retire_of(run_id: str) -> int:
    used_at = Coalesce(Max("sampling_calls__created_at"), "created_at")
    rows = _list_passing().filter(run=run_id).annotate(used_at=used_at)
    newest_first = rows.order_by("-used_at", "-seq").values_list("pk", "size_bytes", "used_at")
    total = num_retired = 0
    for place, (pk, size_bytes, last_used) in enumerate(newest_first):
        total += size_bytes
        if place >= KEPT_SAMPLERS and total > KEPT_BYTES and last_used < now() - IDLE:
            num_retired += _retire(pk)
    return num_retired


def _retire(checkpoint_id: str) -> bool:
    """False: it is in use, or somebody has deleted or kept it meanwhile."""
    same = _list_passing().filter(pk=checkpoint_id)
    checkpoint = same.first()
    return checkpoint is not None and discard(without_work(same), checkpoint)
