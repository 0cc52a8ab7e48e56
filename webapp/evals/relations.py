"""How two evaluated models are related: the way from one to the other through runs, and rows."""

from collections import Counter
from hashlib import blake2b

from django.conf import settings

from webapp.checkpoints.models import Checkpoint
from webapp.datasets.models import DatasetVersion
from webapp.evals.models import Evaluation
from webapp.evals.naming import name_subject

MOST_PARENTS = 50  # of one checkpoint: the way back is read one by one
MOST_BYTES = 64 * 2**20  # of a version: larger ones are not read while somebody waits


def describe_relation(first: Evaluation, second: Evaluation) -> list[str]:
    """Sentences: the way through runs, and how the rows that they learned from differ."""
    before, after = first.checkpoint, second.checkpoint
    if first.base_model_id != second.base_model_id:
        names = f"{first.base_model.short_name} and {second.base_model.short_name}"
        return [f"They stand on two base models, {names}."]
    if before is None or after is None:
        return [_describe_base(first, second)]
    sentences = [describe_way(before, after), describe_rows(before, after)]
    return [sentence for sentence in sentences if sentence]


def _describe_base(first: Evaluation, second: Evaluation) -> str:
    trained, untrained = (second, first) if second.checkpoint else (first, second)
    checkpoint = trained.checkpoint
    if checkpoint is None:
        return "Both are the base model as it is."
    depth = len(list_ancestors(checkpoint))
    through = f" through {depth + 1} runs" if depth else ""
    return (
        f"{name_subject(trained)} was trained from {name_subject(untrained)}{through}; its last run"
        f" made {checkpoint.step:,} steps."
    )


def describe_way(before: Checkpoint, after: Checkpoint) -> str:
    if before.pk == after.pk:
        return "Both are the same checkpoint."
    if before.run_id == after.run_id:
        steps = after.step - before.step
        if not steps:
            return f"Both are of step {after.step:,} of the run {after.run.name}."
        return f"One run, {after.run.name}: the second is {abs(steps):,} steps " + (
            "further." if steps > 0 else "earlier."
        )
    return (
        _describe_descent(before, after, "The second comes from the first")
        or _describe_descent(after, before, "The first comes from the second")
        or _describe_fork(before, after)
    )


def _describe_descent(ancestor: Checkpoint, heir: Checkpoint, opening: str) -> str:
    for distance, parent in enumerate(list_ancestors(heir), start=1):
        if parent.run_id == ancestor.run_id and parent.step >= ancestor.step:
            runs = "the run" if distance == 1 else f"{distance} runs, the last one"
            apart = parent.step - ancestor.step
            more = f" {apart:,} steps after it" if apart else ""
            return (
                f"{opening}: {runs} {heir.run.name} began from {parent.run.name}, step"
                f" {parent.step:,}{more}, and made {heir.step:,} steps since."
            )
    return ""


def _describe_fork(before: Checkpoint, after: Checkpoint) -> str:
    mine = {parent.run_id: parent for parent in list_ancestors(before)}
    mine[before.run_id] = before
    for parent in [after, *list_ancestors(after)]:
        if parent.run_id in mine:
            step = min(parent.step, mine[parent.run_id].step)
            return f"Both come from the run {parent.run.name}, and share it up to step {step:,}."
    return "Two runs from the base model that share no checkpoint."


def list_ancestors(checkpoint: Checkpoint) -> list[Checkpoint]:
    """Of its run's parent, and so on: the nearest first."""
    found: list[Checkpoint] = []
    parent_id = checkpoint.run.parent_id
    while parent_id and len(found) < MOST_PARENTS:
        parent = Checkpoint.objects.select_related("run").defer("probe").get(pk=parent_id)
        found.append(parent)
        parent_id = parent.run.parent_id
    return found


def describe_rows(before: Checkpoint, after: Checkpoint) -> str:
    """Rows are compared by their content, wherever they stand in the file."""
    first, second = before.run.dataset_version, after.run.dataset_version
    if first is None or second is None or first.pk == second.pk:
        return ""
    if first.digest and first.digest == second.digest:
        return f"{first} and {second} hold the same rows."
    counts = _count_rows(first), _count_rows(second)
    if counts[0] is None or counts[1] is None:
        return f"{first} has {first.num_rows:,} rows and {second} {second.num_rows:,}."
    lost, new = (counts[0] - counts[1]).total(), (counts[1] - counts[0]).total()
    shared = (counts[0] & counts[1]).total()
    return (
        f"{second} has {new:,} rows that {first} has not, and lacks {lost:,} of its rows;"
        f" {shared:,} are the same."
    )


def _count_rows(version: DatasetVersion) -> Counter[bytes] | None:
    """None: its file is too large to read now, or not there."""
    path = settings.HONE_HOME / version.rows_path
    if not version.rows_path or not path.is_file() or path.stat().st_size > MOST_BYTES:
        return None
    with path.open("rb") as lines:
        return Counter(blake2b(line.strip(), digest_size=16).digest() for line in lines)
