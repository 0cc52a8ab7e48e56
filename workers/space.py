"""Whether the disk has room for what a save is about to write, said before it is written."""

from pathlib import Path

from training.engine.core import Engine
from training.model_files import read_layouts
from webapp.checkpoints.budgets import check_room
from webapp.checkpoints.models import Checkpoint
from webapp.runs.models import Run

MOMENT_BYTES = 8  # two numbers of 4 bytes for each weight
KINDS = {"training": "the checkpoint", "sampler": "the sampler weights", "external": "the export"}


def check_save(
    engine: Engine, run: Run, kind: str, name: str, *, is_delta: bool, overwrite: bool
) -> None:
    """UserError where it would exceed the project's budget or the disk's reserve."""
    same = Checkpoint.objects.alive().filter(run=run, kind=kind, name=name).first()
    check_room(
        run.project,
        estimate_bytes(engine, run, kind, is_delta=is_delta),
        what=f"{KINDS[kind]} {name[:100]}",
        freed_bytes=same.size_bytes if same is not None and overwrite else 0,
    )


def estimate_bytes(engine: Engine, run: Run, kind: str, *, is_delta: bool) -> int:
    """As the last one like it; else by what the weights are, which is more than a delta takes."""
    like = Checkpoint.objects.filter(run=run, kind=kind)
    if run.is_full:
        like = like.filter(type=Checkpoint.Type.DELTA if is_delta else Checkpoint.Type.BASE)
    last: int | None = like.order_by("-seq").values_list("size_bytes", flat=True).first()
    if last is not None:
        return last
    has_optimizer = kind == Checkpoint.Kind.TRAINING
    if not run.is_full:
        return engine.count_adapter_bytes(run.pk) * (3 if has_optimizer else 1)
    weights = sum(layout.num_bytes for layout in read_layouts(Path(run.base_model.path)))
    moments = MOMENT_BYTES * run.base_model.num_parameters if has_optimizer else 0
    return weights + moments
