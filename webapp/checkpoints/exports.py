"""Every write to exports: asked for once, begun, ended, deleted with their files."""

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils.timezone import now

from webapp.accounts.audit import record_audit
from webapp.accounts.models import Actor, User
from webapp.accounts.permissions import check_can_write
from webapp.checkpoints.budgets import check_room
from webapp.checkpoints.chains import lock
from webapp.checkpoints.models import Checkpoint, Export
from webapp.checkpoints.services import announce, exports_folder
from webapp.core.dispatch import EXPORT_CHECKPOINT, send_task
from webapp.core.errors import NotFound, UserError

ANNOUNCED = timedelta(seconds=30)  # then the message may have been lost
Kind = Export.Kind
Status = Export.Status


def request_export(
    *, actor: Actor, checkpoint: Checkpoint, kind: str, precision: str = "source"
) -> Export:
    """The same again is the one that there is, unless it failed."""
    check_can_write(actor, project_id=checkpoint.project_id)
    check_exportable(checkpoint, kind, precision)
    with transaction.atomic():
        export, is_new = _open(checkpoint, kind, precision, actor.user)
        if is_new:
            record_audit(
                project=checkpoint.project_id,
                user=actor.user,
                event="checkpoint_exported",
                checkpoint=checkpoint.pk,
                export=export.pk,
                kind=kind,
            )
    return export


@transaction.atomic
def merge_saved(checkpoint: Checkpoint, precision: str) -> Export:
    """A save that asked for a merged model: it is made beside the run, which need not wait."""
    check_exportable(checkpoint, Kind.MERGED, precision)
    export, _ = _open(checkpoint, Kind.MERGED, precision, checkpoint.run.created_by)
    return export


def _open(
    checkpoint: Checkpoint, kind: str, precision: str, user: User | None
) -> tuple[Export, bool]:
    if not lock(Checkpoint.objects.alive().filter(pk=checkpoint.pk)):
        raise NotFound(f"The checkpoint {checkpoint.name} was deleted.")
    same = checkpoint.exports.filter(kind=kind, precision=precision)
    first = same.exclude(status=Status.FAILED).first()
    if first is not None:
        return first, False
    check_room(checkpoint.project, estimate_bytes(checkpoint, kind), what="the export")
    export = Export.objects.create(
        project_id=checkpoint.project_id,
        checkpoint=checkpoint,
        user=user,
        kind=kind,
        precision=precision,
    )
    send_task(EXPORT_CHECKPOINT, export.pk)
    announce(checkpoint)
    return export, True


def estimate_bytes(checkpoint: Checkpoint, kind: str) -> int:
    """An adapter without its optimizer at most; a merged model has weights of two bytes or more."""
    if kind == Kind.PEFT:
        return checkpoint.size_bytes
    return 2 * checkpoint.base_model.num_parameters


def check_exportable(checkpoint: Checkpoint, kind: str, precision: str) -> None:
    if kind not in Kind.values:
        raise UserError(f"kind is {kind[:60]!r}: choose peft or merged.", field="kind")
    if precision not in Export.Precision.values:
        raise UserError(
            f"precision is {precision[:60]!r}: choose source or bf16.", field="precision"
        )
    if checkpoint.is_external:
        raise UserError(f"{checkpoint.name} is an export already: download it.")
    if kind == Kind.PEFT and checkpoint.is_full:
        raise UserError(
            f"{checkpoint.name} holds all weights of a model, which is no adapter: export it"
            " merged.",
            field="kind",
        )
    if kind == Kind.PEFT and precision != Export.Precision.SOURCE:
        raise UserError(
            "An adapter is exported as it was trained: leave out precision.", field="precision"
        )


def find_export(actor: Actor, export_id: str) -> Export:
    rows = Export.objects.visible_to(actor).select_related("checkpoint__run")
    export = rows.filter(pk=export_id).first()
    if export is None:
        raise NotFound(f"There is no export {export_id[:60]}.")
    return export


def begin_export(export: Export) -> bool:
    """False: it has ended, or was deleted."""
    live = Export.objects.live().filter(pk=export.pk)
    began = live.update(status=Status.RUNNING) == 1
    announce(export.checkpoint)
    return began


def finish_export(
    export: Export,
    *,
    digest: str,
    size_bytes: int,
    max_difference: float,
    mean_difference: float,
) -> bool:
    """False: it was deleted meanwhile, or its checkpoint was, and its files are to go."""
    alive = Export.objects.live().filter(pk=export.pk, checkpoint__deleted_at=None)
    return _end(
        export,
        alive.update(
            status=Status.READY,
            path=str(place_export(export).relative_to(settings.HONE_HOME)),
            digest=digest,
            size_bytes=size_bytes,
            max_difference=max_difference,
            mean_difference=mean_difference,
            ended_at=now(),
        ),
    )


def fail_export(export: Export, error: str, **columns: Any) -> bool:
    """What was found out by then may be kept beside the reason."""
    live = Export.objects.live().filter(pk=export.pk)
    columns |= {"status": Status.FAILED, "error": error, "ended_at": now()}
    return _end(export, live.update(**columns))


def _end(export: Export, changed: int) -> bool:
    announce(export.checkpoint)
    return changed == 1


def delete_export(*, actor: Actor, export: Export) -> None:
    """One that is being made is given up by whoever makes it."""
    check_can_write(actor, project_id=export.project_id)
    Export.objects.filter(pk=export.pk).delete()
    shutil.rmtree(place_export(export), ignore_errors=True)
    announce(export.checkpoint)


def place_export(export: Export) -> Path:
    return exports_folder(export.checkpoint) / export.pk


def announce_exports() -> None:
    """For messages that were lost and workers that died: one that is being made is not disturbed,
    as whoever makes it holds its claim."""
    waiting = Export.objects.live().filter(created_at__lt=now() - ANNOUNCED)
    for pk in waiting.values_list("pk", flat=True):
        send_task(EXPORT_CHECKPOINT, pk)
