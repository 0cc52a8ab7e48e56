"""Writes of the Fireworks dialect: trainer jobs."""

from django.utils.timezone import now

from webapp.accounts.models import Actor
from webapp.core.errors import NotFound
from webapp.firetitan.endpoints import check_account
from webapp.firetitan.models import TrainerJob


def find_job(actor: Actor, account: str, job_id: str) -> TrainerJob:
    """Deleted ones too: their checkpoints are still listed and promoted."""
    check_account(actor, account)
    jobs = TrainerJob.objects.visible_to(actor).select_related("base_model", "session")
    job = jobs.filter(job_id=job_id).first()
    if job is None:
        raise NotFound(f"There is no trainer job {job_id[:100]}.")
    return job


def note_seen(job: TrainerJob) -> None:
    """Its program is alive: the job's inactivity begins again."""
    TrainerJob.objects.filter(pk=job.pk).update(last_seen_at=now())
