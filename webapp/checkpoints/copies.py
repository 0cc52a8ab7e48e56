"""Copies of checkpoints, in this project or another one: new rows, the same bytes on the disk."""

import os
import shutil
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db import DatabaseError, IntegrityError, transaction
from django.utils.timezone import now

from webapp.accounts.audit import record_audit
from webapp.accounts.models import Actor, Membership, Project, Role
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import announce, find_folder
from webapp.core import ids
from webapp.core.errors import NotFound, UserError
from webapp.runs.copies import record_copy
from webapp.runs.models import Run, Session


def copy_checkpoint(
    *,
    actor: Actor,
    source: Checkpoint,
    project: Project,
    key: str = "",
    session: Session | None = None,
    model_seq_id: int | None = None,
    ttl_seconds: int | None = None,
) -> Checkpoint:
    """It outlives its source, and does not inherit its lifetime, name of run or being public.

    A repeat, by the key or by the place in the session, returns the first copy.
    """
    first = _find_first(source, project, key, session, model_seq_id)
    if first is not None:
        return first
    run_id = ids.make_run_id()
    path = f"checkpoints/{run_id}/{Path(source.path).name}"
    _link_folder(source, Path(settings.HONE_HOME) / path)
    try:
        with transaction.atomic():
            _check_is_whole(source)
            run = record_copy(
                actor=actor,
                run_id=run_id,
                project=project,
                parent=source,
                session=session,
                model_seq_id=model_seq_id,
            )
            copy = _make_row(source, run, path)
            copy.copy_key = key
            copy.expires_at = now() + timedelta(seconds=ttl_seconds) if ttl_seconds else None
            copy.save(force_insert=True)
            details = {"checkpoint": copy.pk, "source": source.pk}
            event = "checkpoint_copied"
            record_audit(project=project, user=actor.user, event=event, **details)
            announce(copy)
    except (DatabaseError, UserError) as error:
        shutil.rmtree(Path(settings.HONE_HOME) / path, ignore_errors=True)
        if isinstance(error, IntegrityError):  # the same request came twice at once
            first = _find_first(source, project, key, session, model_seq_id)
            if first is not None:
                return first
        raise
    return copy


def find_destination(actor: Actor, project_id: str) -> Project:
    """One that the actor's user may write in, whichever project the key is of."""
    membership = Membership.objects.filter(user=actor.user, project=project_id).first()
    if membership is None:
        raise NotFound(f"There is no project {project_id[:60]} that {actor.user} is a member of.")
    if membership.role == Role.VIEWER:
        raise UserError(
            f"{actor.user} is a viewer of {membership.project}: copies go where their owner may"
            " write.",
            field="destination_project_id",
        )
    return membership.project


def _find_first(
    source: Checkpoint, project: Project, key: str, session: Session | None, seq_id: int | None
) -> Checkpoint | None:
    copies = Checkpoint.objects.select_related("run")
    if session is not None:
        first = copies.filter(run__session=session, run__model_seq_id=seq_id).first()
        is_taken = Run.objects.filter(session=session, model_seq_id=seq_id).exists()
    else:
        first = copies.filter(project=project, copy_key=key).first() if key else None
        is_taken = first is not None
    if is_taken and (first is None or first.run.parent_id != source.pk):
        name = f"model_seq_id {seq_id} of this session" if session else "This X-Idempotency-Key"
        raise UserError(f"{name} was used for something else already: choose another one.")
    return first


def _check_is_whole(source: Checkpoint) -> None:
    """Files go after their row says so: where it does not yet, all of them were there to link."""
    if not Checkpoint.objects.alive().filter(pk=source.pk).exists():
        raise UserError(f"{source.name} was deleted while it was being copied.")


def _make_row(source: Checkpoint, run: Run, path: str) -> Checkpoint:
    return Checkpoint(
        project_id=run.project_id,
        run=run,
        base_model_id=source.base_model_id,
        name=source.name,
        kind=source.kind,
        step=source.step,
        seq=source.seq,
        path=path,
        digest=source.digest,
        size_bytes=source.size_bytes,
        rank=source.rank,
        has_optimizer=source.has_optimizer,
        is_encrypted=source.is_encrypted,
        probe=source.probe,
        user_metadata=source.user_metadata,
    )


def _link_folder(source: Checkpoint, target: Path) -> None:
    """Hard links: files of checkpoints are never written again, only removed."""
    try:
        target.mkdir(parents=True)
        for file in find_folder(source).iterdir():
            _link_file(file, target / file.name)
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise UserError(
            f"The files of {source.name} could not be copied: {error.strerror}."
        ) from error


def _link_file(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except FileNotFoundError:
        raise
    except OSError:  # a disk that knows no hard links
        shutil.copyfile(file, target)
