"""A session moves to another project of its owner's, with everything that it made.

Whoever worked on it by a key of the old project sees it no longer, so it moves once it has ended.
"""

from django.db import transaction
from django.db.models import QuerySet

from webapp.accounts.audit import record_audit
from webapp.accounts.models import Actor, Membership, Project
from webapp.accounts.permissions import check_can_write
from webapp.checkpoints.models import Checkpoint
from webapp.core.errors import NotFound, UserError
from webapp.deployments.models import Deployment, SampledHour, SamplingCall, SamplingSession
from webapp.evals.models import Evaluation
from webapp.runs.models import Operation, Run, Session
from webapp.runs.services import add_log

PENDING = (Operation.Status.QUEUED, Operation.Status.RUNNING)


def move_session(*, actor: Actor, session: Session, project_id: str) -> None:
    """Twice the same is once: the second time it is there already."""
    check_can_write(actor)
    target = find_target(actor, project_id)
    if session.project_id == target.pk:
        return
    checkpoints = Checkpoint.objects.filter(run__session=session)
    check_at_rest(session)
    check_unused(checkpoints)
    with transaction.atomic():
        _move(session, checkpoints, target)
        for project in (session.project, target):
            details = {"session": session.pk, "to": target.pk}
            record_audit(project=project, user=actor.user, event="session_moved", **details)
        for run in session.runs.all():
            add_log(run, f"Moved by {actor.user} to the project {target}.")


def find_target(actor: Actor, project_id: str) -> Project:
    """Where the key's user may write, even though the key itself works in one project alone."""
    theirs = Membership.objects.select_related("project").filter(user=actor.user)
    membership = theirs.filter(project=project_id).first()
    if membership is None:
        raise NotFound(f"There is no project {project_id[:60]} that {actor.user} is a member of.")
    if not Actor(user=actor.user, project=membership.project, role=membership.role).can_write:
        raise UserError(f"{actor.user} is a viewer of {membership.project}: it may read, not add.")
    return membership.project


def check_at_rest(session: Session) -> None:
    if session.finished_at is None:
        raise UserError(
            "This session is still open, and its program works by a key of its project: close it"
            " first, or open it with a key of the other project."
        )
    pending = Operation.objects.filter(run__session=session, status__in=PENDING)
    if pending.exists():
        raise UserError("Work of this session is still being done: move it in a moment.")


def check_unused(checkpoints: QuerySet[Checkpoint]) -> None:
    """What a project serves and compares stays in it."""
    serving = Deployment.objects.filter(checkpoint__in=checkpoints).first()
    if serving is not None:
        raise UserError(f"The deployment {serving} serves a checkpoint of this session.")
    evaluation = Evaluation.objects.filter(checkpoint__in=checkpoints).first()
    if evaluation is not None:
        raise UserError("An evaluation of this project has measured a checkpoint of this session.")


def _move(session: Session, checkpoints: QuerySet[Checkpoint], target: Project) -> None:
    checkpoints.update(project=target)
    Run.objects.filter(session=session).update(project=target)
    # Sampling clients before their calls, as whoever ends a call locks them.
    SamplingSession.objects.filter(session=session).update(project=target)
    SamplingCall.objects.filter(sampling_session__session=session).update(project=target)
    SampledHour.objects.filter(session_id=session.pk).update(project=target)
    # A retry of its creation belongs to the project where it was created.
    Session.objects.filter(pk=session.pk).update(project=target, idempotency_key="")
