"""Writes of the Fireworks dialect: a trainer job's life."""

from datetime import timedelta
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils.timezone import now

from webapp.accounts.audit import record_audit
from webapp.accounts.models import Actor, Role
from webapp.core.errors import NotFound, UserError
from webapp.deployments.models import Deployment
from webapp.deployments.replicas import scale_deployment
from webapp.firetitan.describing import name_job
from webapp.firetitan.endpoints import check_account
from webapp.firetitan.errors import AlreadyExists
from webapp.firetitan.job_requests import JobRequest
from webapp.firetitan.models import TrainerJob
from webapp.firetitan.names import find_base_model
from webapp.firetitan.standing import Standing, assess
from webapp.fleet.models import BaseModel
from webapp.runs.models import Operation, Session
from webapp.runs.services import finish_session

State = TrainerJob.State

RESUMABLE = (State.FAILED, State.PAUSED, State.CANCELLED)
LIVE = (Operation.Status.QUEUED, Operation.Status.RUNNING)


def find_job(actor: Actor, account: str, job_id: str) -> TrainerJob:
    """Deleted ones too: their checkpoints are still listed and promoted."""
    check_account(actor, account)
    jobs = TrainerJob.objects.visible_to(actor).select_related("base_model")
    job = jobs.filter(job_id=job_id).first()
    if job is None:
        raise NotFound(f"There is no trainer job {job_id[:100]}.")
    return job


@transaction.atomic
def create_job(*, actor: Actor, request: JobRequest) -> TrainerJob:
    """A job that cannot be is made as well, and failed: its program reads why from its state."""
    base_model = find_or_none(request.asked_model)
    context, notes = choose_context(request, base_model)
    job = TrainerJob(
        project=actor.project,
        created_by=actor.user,
        job_id=request.job_id,
        display_name=request.display_name,
        base_model=base_model,
        asked_model=request.asked_model,
        lora_rank=request.lora_rank,
        learning_rate=request.learning_rate,
        max_context_length=context,
        forward_only=request.forward_only,
        hot_load_deployment=request.hot_load_deployment,
        training_shape=request.training_shape,
        inactivity_seconds=request.inactivity_seconds,
        warning=describe_ignored(request.ignored, notes),
    )
    try:
        with transaction.atomic():
            job.save(force_insert=True)
    except IntegrityError:
        raise AlreadyExists(f"There is a trainer job {job.job_id} already.") from None
    record_audit(project=job.project, user=actor.user, event="job_created", job=job.job_id)
    refresh_state(job)
    return job


def find_or_none(asked_model: str) -> BaseModel | None:
    try:
        return find_base_model(asked_model)
    except NotFound:
        return None


def choose_context(request: JobRequest, base_model: BaseModel | None) -> tuple[int | None, str]:
    """A model reads no more tokens than its positions reach."""
    most = base_model.context_tokens if base_model else None
    asked = request.max_context_length
    if most is None or asked is None or asked <= most:
        return asked or most, ""
    return most, f"maxContextLength is {asked}, and {base_model} reads {most} tokens at most"


def describe_ignored(ignored: tuple[str, ...], note: str) -> str:
    unused = f"not followed here: {', '.join(ignored)}" if ignored else ""
    told = "; ".join(part for part in (note, unused) if part)
    return f"Warning: {told}." if told else ""


def refresh_state(job: TrainerJob) -> Standing:
    """What holds now is what is told and kept."""
    if not job.is_open:
        return Standing(state=State(job.state), reason=job.error)
    standing = assess(job)
    if standing.state != job.state:
        begun = {"last_seen_at": now()} if standing.state == State.RUNNING else {}
        ended = {"error": standing.reason, "ended_at": now()}
        columns = ended if standing.state == State.FAILED else begun
        _change(job, State(job.state), standing.state, **columns)
    return standing


def resume_job(*, actor: Actor, job: TrainerJob) -> Standing:
    """One that is open is left as it is."""
    if job.state == State.DELETED:
        raise UserError(f"The trainer job {job.job_id} was deleted: create another one.")
    if job.state in RESUMABLE:
        job.base_model = find_or_none(job.asked_model)
        columns = {"base_model": job.base_model, "error": "", "ended_at": None}
        _change(job, State(job.state), State.PENDING, last_seen_at=now(), **columns)
        record_audit(project=job.project, user=actor.user, event="job_resumed", job=job.job_id)
    return refresh_state(job)


@transaction.atomic
def cancel_job(*, actor: Actor, job: TrainerJob) -> None:
    job = _lock(job)
    if not job.is_open:
        raise UserError(f"The trainer job {job.job_id} is over: it cannot be cancelled.")
    _change(job, State(job.state), State.CANCELLED, ended_at=now())
    finish_sessions(job, reason="interrupted")
    record_audit(project=job.project, user=actor.user, event="job_cancelled", job=job.job_id)


@transaction.atomic
def delete_job(*, actor: Actor, job: TrainerJob) -> None:
    """Its runs end; its row and their checkpoints stay."""
    job = _lock(job)
    if job.state == State.DELETED:
        return
    _change(job, State(job.state), State.DELETED, deleted_at=now(), ended_at=job.ended_at or now())
    finish_sessions(job, reason="success")
    record_audit(project=job.project, user=actor.user, event="job_deleted", job=job.job_id)


def note_seen(job: TrainerJob) -> None:
    """Its program is alive: the job's inactivity begins again."""
    TrainerJob.objects.filter(pk=job.pk).update(last_seen_at=now())


def pause_idle_jobs() -> int:
    """Those whose programs were not heard of for as long as each had said. Work they left in the
    log is done first.
    """
    idle = [each for each in TrainerJob.objects.filter(state=State.RUNNING) if is_idle(each)]
    return sum(_pause(job) for job in idle)


def is_idle(job: TrainerJob) -> bool:
    limit = now() - timedelta(seconds=job.inactivity_seconds)
    sessions = list_sessions(job)
    is_silent = job.last_seen_at < limit and not sessions.filter(heartbeat_at__gt=limit).exists()
    return is_silent and not sessions.filter(runs__operations__status__in=LIVE).exists()


@transaction.atomic
def _pause(job: TrainerJob) -> bool:
    paused = _change(job, State.RUNNING, State.PAUSED, ended_at=now(), error=explain_pause(job))
    if paused:
        finish_sessions(job, reason="lost")
        send_to_sleep(job)
    return paused


def send_to_sleep(job: TrainerJob) -> None:
    """The deployments that its program made for the training alone: nobody is there to close them.
    The next request for one wakes it.
    """
    if job.created_by is None:
        return
    actor = Actor(user=job.created_by, project=job.project, role=Role.MEMBER)
    awake = Deployment.objects.filter(project=job.project, num_replicas__gt=0)
    for deployment in awake.filter(
        fireworks_terms__for_training=True, fireworks_terms__hot_load_trainer_job=name_job(job)
    ):
        scale_deployment(actor=actor, deployment=deployment, num_replicas=0)


def explain_pause(job: TrainerJob) -> str:
    return f"Nothing was heard of its program for {job.inactivity_seconds} s: resume it."


def list_sessions(job: TrainerJob) -> QuerySet[Session]:
    """Of the clients that are open on it."""
    return Session.objects.filter(trainer_jobs=job, finished_at=None)


def finish_sessions(job: TrainerJob, *, reason: str) -> None:
    for session in list_sessions(job):
        finish_session(session, reason=reason)


def _lock(job: TrainerJob) -> TrainerJob:
    """As it is by now: whoever looks at a job may have changed its state."""
    return TrainerJob.objects.select_for_update().get(pk=job.pk)


def _change(job: TrainerJob, before: State, after: State, **columns: Any) -> bool:
    """False: somebody else came first."""
    same = TrainerJob.objects.filter(pk=job.pk, state=before)
    changed = same.update(state=after, **columns) == 1
    job.refresh_from_db()
    return changed
