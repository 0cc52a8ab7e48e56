"""What a run's weights are made again from: an autosave, and the log since."""

import shutil
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from django.conf import settings

from training.engine.core import Engine
from training.errors import InvalidInput
from webapp.runs import queue
from webapp.runs.models import Operation, Run
from workers.execute import Held, catch_up, count_output, execute, read_request

AUTOSAVE_SECONDS = 30.0  # what a restart repeats at most, in device time
# An autosave that took longer is made as much less often: it never costs more than a twentieth of
# the time, and that of all weights of a model may take minutes.
QUICK_AUTOSAVE_SECONDS = 1.5
AUTOSAVE_BYTES = 200 * 1024**2  # of payloads that the database keeps for a replay

Kind = Operation.Kind


def is_autosave_due(held: Held) -> bool:
    """Only between an optimizer step and the next gradient: an autosave holds no gradients."""
    waited = time.monotonic() - held.autosaved_at
    enough = AUTOSAVE_SECONDS * max(1.0, held.autosave_seconds / QUICK_AUTOSAVE_SECONDS)
    return held.is_settled and (waited >= enough or held.unsaved_bytes >= AUTOSAVE_BYTES)


def autosave(held: Held) -> None:
    """Weights and optimizer on disk; then the log up to here needs no payloads any more."""
    started = time.monotonic()
    place = find_place(held.run) / f"{held.seq}-{uuid.uuid4().hex[:8]}"
    held.engine.save_weights(held.run.pk, place, optimizer=True)
    path = str(place.relative_to(settings.HONE_HOME))
    if queue.cover_operations(held.run, seq=held.seq, path=path):
        remove_others(place)
    else:  # another worker has this run, and is further
        shutil.rmtree(place, ignore_errors=True)
    held.unsaved_bytes, held.autosaved_at = 0, time.monotonic()
    held.autosave_seconds = held.autosaved_at - started


def find_place(run: Run) -> Path:
    return Path(settings.HONE_HOME) / "autosaves" / run.pk


def remove_others(newest: Path) -> None:
    """Crashed saves and older ones of the same run."""
    for folder in newest.parent.glob("*"):
        if folder.name != newest.name:
            shutil.rmtree(folder, ignore_errors=True)


def discard(run: Run) -> None:
    """A run that is over is not restored any more."""
    shutil.rmtree(find_place(run), ignore_errors=True)


def restore(run: Run, engine: Engine) -> Held:
    """Bring the engine to where the log stands: the last autosave, then what came after it."""
    run.refresh_from_db()
    held = Held(run=run, engine=engine, seq=run.autosave_seq)
    engine.drop(run.pk)
    if run.autosave_path:
        folder = Path(settings.HONE_HOME) / run.autosave_path
        engine.load_weights(run.pk, folder, optimizer=True)
    for operation in find_replay(run):
        replay(held, operation)
    return held


def find_replay(run: Run) -> Iterable[Operation]:
    """What changed the weights; a refused optimizer step may have used up the gradients."""
    refused = Operation.objects.filter(
        run=run,
        kind=Kind.OPTIM_STEP,
        status=Operation.Status.FAILED,
        error_category="user",
        seq__gt=run.autosave_seq,
    ).exclude(worker="")
    return sorted([*queue.find_replay(run), *refused], key=lambda operation: operation.seq)


def replay_alone(held: Held, operation: Operation) -> None:
    """What was refused before is again. What was done, and cannot be, is weights that are lost."""
    try:
        execute(held, operation)
    except InvalidInput as error:
        if operation.status != Operation.Status.FAILED:
            raise InvalidInput(
                f"this run's weights cannot be made again, as its {operation.kind} with seq_id"
                f" {operation.seq} cannot be repeated: {error}"
            ) from error


def replay(held: Held, operation: Operation) -> None:
    """Do again what was done before; its result is stored already."""
    if operation.kind != Kind.FORWARD_BACKWARD:
        replay_alone(held, operation)
        return
    request = read_request(operation)
    if request.forward_only:
        return
    catch_up(held, operation)
    started = time.perf_counter()
    output = held.engine.forward_backward({held.run.pk: request})[held.run.pk]
    if isinstance(output, InvalidInput):
        raise output  # it was done before: whatever is different now is the server's
    count_output(held, output, request, time.perf_counter() - started)
    held.seq, held.is_settled = operation.seq, False
    held.unsaved_bytes += len(operation.payload or b"")
