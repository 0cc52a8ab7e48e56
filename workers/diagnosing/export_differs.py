"""A copy of a checkpoint, exported or served, that does not say what the trainer said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import InvalidInput
from webapp.checkpoints.models import Export
from webapp.checkpoints.services import find_folder
from webapp.deployments.models import HotLoad
from webapp.runs.models import Run
from webapp.runs.records import Finding
from webapp.runs.thresholds import DEFAULTS, Limits
from workers.diagnosing.verdict import NOTHING, Verdict, clear, found, not_applicable
from workers.proof import check_adapter

MOST = 100  # newest exports, and newest loads
DAMAGED = ("is damaged", "changed on disk")


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """The newest of one kind of one checkpoint."""

    id: str
    checkpoint: str  # its id
    name: str
    step: int
    kind: str  # an export, a served copy
    differs: bool
    difference: float | None = None
    error: str = ""
    culprit: str = ""  # which tensor is not as it was saved


def look(run: Run, memory: Mapping[str, Any] = NOTHING, _limits: Limits = DEFAULTS) -> Verdict:
    copies = [*read_exports(run), *read_loads(run)]
    if not copies:
        return not_applicable("Nothing of this run was exported or served.")
    known = dict(memory.get("culprits", {}))
    named = [name_culprit(run, each, known) if each.differs else each for each in copies]
    return judge(named, memory={"culprits": known})


def read_exports(run: Run) -> list[Copy]:
    rows = Export.objects.filter(checkpoint__run=run, checkpoint__deleted_at=None)
    ended = rows.exclude(max_difference=None).select_related("checkpoint").order_by("-created_at")
    newest: dict[tuple[str, str, str], Copy] = {}
    for each in ended[:MOST]:
        copy = Copy(
            id=each.pk,
            checkpoint=each.checkpoint_id,
            name=each.checkpoint.name,
            step=each.checkpoint.step,
            kind=f"{each.kind} export",
            differs=each.status == Export.Status.FAILED,
            difference=each.max_difference,
            error=each.error,
        )
        newest.setdefault((each.checkpoint_id, each.kind, each.precision), copy)
    return list(newest.values())


def read_loads(run: Run) -> list[Copy]:
    """A server that ended says nothing of the weights."""
    rows = HotLoad.objects.filter(checkpoint__run=run, checkpoint__deleted_at=None)
    ended = rows.exclude(status__in=(HotLoad.Status.LOADING, HotLoad.Status.LOST))
    newest: dict[str, Copy] = {}
    for each in ended.select_related("checkpoint").defer("server_logprobs").order_by("-pk")[:MOST]:
        is_damaged = any(word in each.error for word in DAMAGED)
        copy = Copy(
            id=str(each.pk),
            checkpoint=each.checkpoint_id,
            name=each.checkpoint.name,
            step=each.checkpoint.step,
            kind="served copy",
            differs=each.status == HotLoad.Status.FAILED
            and (each.max_difference is not None or is_damaged),
            difference=each.max_difference,
            error=each.error,
        )
        newest.setdefault(each.checkpoint_id, copy)
    return list(newest.values())


def name_culprit(run: Run, copy: Copy, known: dict[str, str]) -> Copy:
    """Which tensor of the checkpoint's files is not as it was saved; read once for each copy."""
    key = f"{copy.kind} {copy.id}"
    if key not in known:
        known[key] = find_culprit(run, copy)
    columns = {name: getattr(copy, name) for name in Copy.__dataclass_fields__}
    return Copy(**{**columns, "culprit": known[key]})


def find_culprit(run: Run, copy: Copy) -> str:
    checkpoint = run.checkpoints.get(pk=copy.checkpoint)
    if checkpoint.is_full:
        return ""
    try:
        check_adapter(find_folder(checkpoint), Path(run.base_model.path))
    except InvalidInput as error:
        return f"{error}."
    return "The checkpoint's own files are as they were saved: the copy went wrong."


def judge(copies: Sequence[Copy], memory: Mapping[str, Any] = NOTHING) -> Verdict:
    wrong = [copy for copy in copies if copy.differs]
    if not wrong:
        largest = max((copy.difference or 0.0 for copy in copies), default=0.0)
        text = f"{len(copies)} compared; the largest difference was {largest:.2g} nats."
        return clear(text, memory)
    first = wrong[0]
    by = f" by up to {first.difference:.2g} nats" if first.difference is not None else ""
    text = (
        f"A {first.kind} of {first.name} differs from what was trained{by}."
        f" {first.culprit or first.error} Do not use it; save the checkpoint again and export that."
    )
    facts = [
        {
            "id": copy.checkpoint,
            "name": copy.name,
            "step": copy.step,
            "why": f"{copy.kind}: {copy.culprit or copy.error}",
            "can_keep": False,
        }
        for copy in wrong
    ]
    error = Finding.Level.ERROR
    return found(text, step=first.step, level=error, facts={"checkpoints": facts}, memory=memory)
