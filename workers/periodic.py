"""The beat: what nobody's request sets off. Each task is free when there is nothing to do."""

import shutil
from datetime import timedelta

from celery.signals import worker_ready
from django.conf import settings
from django.db.models import Q
from django.utils.timezone import now

from webapp.accounts.webhooks import announce_deliveries, forget_deliveries
from webapp.checkpoints.exports import announce_exports
from webapp.checkpoints.retention import retire_samplers
from webapp.checkpoints.retention_services import apply_active_rules
from webapp.checkpoints.services import expire_checkpoints
from webapp.datasets.analyses import announce_analyses, forget_analyses
from webapp.datasets.generations import announce_generations
from webapp.datasets.services import announce_validating
from webapp.deployments.abandoned import drop_lost
from webapp.deployments.calls import requeue_expired
from webapp.deployments.retention import forget_calls, forget_sessions
from webapp.evals.aliases import settle_moves
from webapp.evals.services import announce_waiting, settle_abandoned
from webapp.firetitan.services import pause_idle_jobs
from webapp.fleet.isolation import settle_isolation_tests
from webapp.runs import driving, queue
from webapp.runs.models import Run
from webapp.runs.refusals import fail_passed
from webapp.runs.retention import forget_logs
from webapp.runs.rollouts import thin_rollouts
from webapp.runs.services import reap_sessions
from workers import diagnose, recipe
from workers.celery import app

KICK_SECONDS = 5.0
LOOK_SECONDS = 5.0
SWEEP_SECONDS = 15.0
CLEAN_SECONDS = 60.0
AUTOSAVE_REST = timedelta(minutes=10)  # its worker drops it itself, between two turns


@app.task(name="beat.kick")
def kick() -> None:
    """Messages may be lost, rows may not: whatever waits is announced again."""
    queue.kick_waiting()
    recipe.free_abandoned()
    driving.announce_driverless()


@worker_ready.connect
def begin(**_: object) -> None:
    """Whoever begins may be the next after one that died: what that one left need not wait."""
    kick()


@app.task(name="beat.sweep")
def sweep() -> None:
    """What has waited for longer than it may."""
    queue.fail_gaps()
    fail_passed()
    requeue_expired()
    drop_lost()
    settle_abandoned()
    settle_moves()
    settle_isolation_tests()
    announce_validating()
    announce_analyses()
    announce_generations()
    announce_waiting()
    announce_exports()
    announce_deliveries()


@app.task(name="beat.look")
def look() -> None:
    """At what the diagnostics have not seen yet."""
    diagnose.announce_due()


@app.task(name="beat.clean")
def clean() -> None:
    """What has outlived its use."""
    pause_idle_jobs()
    reap_sessions()
    expire_checkpoints()
    retire_samplers()
    apply_active_rules()
    discard_autosaves()
    forget_logs()
    thin_rollouts()
    forget_calls()
    forget_sessions()
    forget_analyses()
    forget_deliveries()


def discard_autosaves() -> None:
    """Of runs that are over or gone; a worker that died could not do it itself."""
    folders = {path.name: path for path in (settings.HONE_HOME / "autosaves").glob("*")}
    ending = Q(ended_at=None) | Q(ended_at__gt=now() - AUTOSAVE_REST)
    needed = Run.objects.filter(ending, pk__in=folders).values_list("pk", flat=True)
    for run_id in folders.keys() - set(needed):
        shutil.rmtree(folders[run_id], ignore_errors=True)


# One that could not run in time is not run late: the next one does the same.
app.conf.beat_schedule = {
    name: {"task": f"beat.{name}", "schedule": seconds, "options": {"expires": seconds}}
    for name, seconds in (
        ("kick", KICK_SECONDS),
        ("look", LOOK_SECONDS),
        ("sweep", SWEEP_SECONDS),
        ("clean", CLEAN_SECONDS),
    )
}
