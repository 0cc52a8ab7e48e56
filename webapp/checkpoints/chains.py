"""Deltas and what they differ from: what the next one builds on, and what has to stay for them."""

from training.deltas import MAX_DELTAS
from webapp.checkpoints.models import Checkpoint, CheckpointQuerySet
from webapp.core.errors import UserError
from webapp.runs.models import Run


def find_previous(run: Run) -> Checkpoint | None:
    """What the next sampler weights of a full-parameter run are saved as the difference to.

    None: they are saved whole, as the first ones are, and those after MAX_DELTAS deltas in a row.
    """
    whole = (Checkpoint.Type.BASE, Checkpoint.Type.DELTA)
    mine = Checkpoint.objects.alive().filter(run=run, kind=Checkpoint.Kind.SAMPLER, type__in=whole)
    newest = mine.order_by("-seq").first()
    return None if newest is None or count_deltas(newest) >= MAX_DELTAS else newest


def count_deltas(checkpoint: Checkpoint) -> int:
    """How many in a row it is the last of; 0 for a base."""
    count, at = 0, checkpoint
    while at.previous is not None:
        count, at = count + 1, at.previous
    return count


def hold_previous(previous: Checkpoint) -> None:
    """In the transaction that makes a delta's row: it cannot be deleted at the same moment."""
    if not lock(Checkpoint.objects.alive().filter(pk=previous.pk)):
        raise UserError(
            f"{previous.name} was deleted while a difference to it was being saved: save again."
        )


def hold_weights(checkpoint: Checkpoint | None) -> None:
    """In the transaction that begins to use them: nobody deletes them before the row is there that
    says so."""
    if checkpoint is not None and not lock(Checkpoint.objects.alive().filter(pk=checkpoint.pk)):
        raise UserError(f"The checkpoint {checkpoint.name} was deleted.", field="checkpoint")


def lock(checkpoints: CheckpointQuerySet) -> list[str]:
    """Nobody else begins or ends using these rows until the transaction has ended."""
    rows = checkpoints.order_by("pk").select_for_update(of=("self",))
    return list(rows.values_list("pk", flat=True))


def without_deltas(checkpoints: CheckpointQuerySet) -> CheckpointQuerySet:
    """Those whose weights nothing that lives is restored from."""
    needed = Checkpoint.objects.alive().filter(type=Checkpoint.Type.DELTA).values("previous")
    return checkpoints.exclude(pk__in=needed)


def check_no_deltas(checkpoint: Checkpoint) -> None:
    deltas = list(checkpoint.deltas.alive().order_by("seq").values_list("name", flat=True))
    if deltas:
        raise UserError(
            f"{checkpoint.name} cannot be deleted yet: {' and '.join(deltas)} holds only what"
            " differs from it. Delete that first."
        )
