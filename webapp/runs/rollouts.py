"""A run's rollouts: kept as they are made, and thinned where they are many."""

from collections.abc import Sequence

from django.db.models import Max

from webapp.core.events import publish, run_group
from webapp.runs.models import Run
from webapp.runs.records import Rollout

MOST_OF_A_STEP = 512  # answers with their tokens: whole groups, the first ones
KEPT_STEPS = 50  # whose answers keep their tokens; older ones keep their text
AT_ONCE = 1000


def record_rollouts(run: Run, rollouts: Sequence[Rollout]) -> None:
    """A replayed step writes nothing twice."""
    Rollout.objects.bulk_create(rollouts, ignore_conflicts=True, batch_size=100)
    publish(run_group(run.pk), "rollouts")


def thin_rollouts(*, limit: int = AT_ONCE) -> int:
    """Tokens of old steps go; what was said and what it was worth stays. Returns how many rows."""
    newest = Rollout.objects.order_by().values("run").annotate(last=Max("step"))
    num_thinned = 0
    for run_id, last in newest.filter(last__gt=KEPT_STEPS).values_list("run", "last"):
        old = Rollout.objects.filter(run=run_id, step__lte=last - KEPT_STEPS).exclude(tokens=[])
        pks = list(old.order_by("pk").values_list("pk", flat=True)[: limit - num_thinned])
        num_thinned += Rollout.objects.filter(pk__in=pks).update(tokens=[])
        if num_thinned >= limit:
            break
    return num_thinned
