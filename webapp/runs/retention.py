"""What of the log is forgotten: the bytes of runs that ended a while ago. The rows stay."""

from datetime import timedelta

from django.db.models import Q
from django.utils.timezone import now

from webapp.runs.models import Operation, Run

KEPT = timedelta(days=1)  # a client that lost a result asks again within minutes
AT_ONCE = 1000  # rows of one turn: nobody else waits long for the database
RUNS_AT_ONCE = 100


def forget_logs(*, limit: int = AT_ONCE) -> int:
    """Returns of how many operations. What is left over is the next turn's."""
    num_forgotten = 0
    ended = Run.objects.filter(ended_at__lt=now() - KEPT, forgotten_at=None).order_by("ended_at")
    for run in ended.only("pk")[:RUNS_AT_ONCE]:
        num_forgotten += _forget_log(run, limit - num_forgotten)
        if num_forgotten >= limit:
            break
    return num_forgotten


def _forget_log(run: Run, limit: int) -> int:
    has_bytes = Q(payload__isnull=False) | Q(result__isnull=False)
    rows = Operation.objects.filter(has_bytes, run=run)
    pks = list(rows.order_by("seq").values_list("pk", flat=True)[:limit])
    Operation.objects.filter(pk__in=pks).update(payload=None, result=None)
    if len(pks) < limit:
        Run.objects.filter(pk=run.pk).update(forgotten_at=now())
    return len(pks)
