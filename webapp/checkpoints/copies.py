"""Copies of checkpoints, in this project or another one: new rows, the same bytes on the disk."""

import json
import os
import shutil
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db import DatabaseError, IntegrityError, transaction
from django.utils.timezone import now

from training.deltas import restore_folder
from training.errors import InvalidInput
from training.manifest import MANIFEST_FILE, read_manifest
from training.model_files import digest_file
from webapp.accounts.audit import record_audit
from webapp.accounts.models import Actor, Membership, Project, Role
from webapp.checkpoints.budgets import check_room
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
    check_room(project, estimate_bytes(source), what=f"the copy of {source.name}")
    run_id = ids.make_run_id()
    path = f"checkpoints/{run_id}/{Path(source.path).name}"
    _copy_folder(source, Path(settings.HONE_HOME) / path)
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


def estimate_bytes(source: Checkpoint) -> int:
    """A delta is copied as a whole model."""
    return round(source.size_bytes / source.ratio) if source.ratio else source.size_bytes


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
        size_bytes=count_bytes(Path(settings.HONE_HOME) / path),
        rank=source.rank,
        type=Checkpoint.Type.BASE if source.is_delta else source.type,
        has_optimizer=source.has_optimizer,
        is_encrypted=source.is_encrypted,
        probe=source.probe,
        user_metadata=source.user_metadata,
    )


def _copy_folder(source: Checkpoint, target: Path) -> None:
    """A delta becomes a whole model: what it is the difference to does not come along."""
    fill = restore_model if source.is_delta else link_files
    try:
        target.mkdir(parents=True)
        fill(find_folder(source), target)
    except (OSError, InvalidInput) as error:
        shutil.rmtree(target, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"The files of {source.name} could not be copied: {reason}.") from error


def restore_model(folder: Path, target: Path) -> None:
    restore_folder(folder, target)
    files = {file.name: digest_file(file) for file in target.iterdir()}
    manifest = replace(
        read_manifest(folder),
        type="base", files=files, previous="", previous_digest="", ratio=None,
    )  # fmt: skip
    written = json.dumps(asdict(manifest), indent=2, sort_keys=True)
    (target / MANIFEST_FILE).write_text(written + "\n")


def link_files(folder: Path, target: Path) -> None:
    """Hard links: files of checkpoints are never written again, only removed."""
    for file in folder.iterdir():
        _link_file(file, target / file.name)


def count_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _link_file(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except FileNotFoundError:
        raise
    except OSError:  # a disk that knows no hard links
        shutil.copyfile(file, target)
