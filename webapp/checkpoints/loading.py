"""Which checkpoint's weights a program's model may take over."""

from typing import Any

from webapp.checkpoints.models import Checkpoint
from webapp.core.errors import UserError
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run
from webapp.runs.services import LORA_FLAGS


def plan_load(run: Run, checkpoint: Checkpoint, *, optimizer: bool) -> dict[str, Any]:
    """The payload of a load into a model that exists. Without `optimizer` it gets a new one."""
    check_same_model(checkpoint, run.base_model)
    check_same_shape(checkpoint, run)
    if optimizer and not checkpoint.has_optimizer:
        raise UserError(f"{checkpoint.tinker_path} was saved without its optimizer.")
    if optimizer and checkpoint.run.optimizer != run.optimizer:
        raise UserError(
            f"{checkpoint.tinker_path} holds the state of {checkpoint.run.optimizer}, this"
            f" model has {run.optimizer}: load its weights alone."
        )
    return {"checkpoint": checkpoint.pk, "optimizer": optimizer, "kind": run.optimizer}


def check_same_model(checkpoint: Checkpoint, base_model: BaseModel) -> None:
    if checkpoint.base_model_id != base_model.pk:
        raise UserError(
            f"{checkpoint.tinker_path} belongs to {checkpoint.base_model}, not to {base_model}."
        )


def check_same_shape(checkpoint: Checkpoint, run: Run) -> None:
    if checkpoint.is_full is not run.is_full:
        theirs, ours = (
            "all weights" if each.is_full else "an adapter" for each in (checkpoint, run)
        )
        raise UserError(
            f"{checkpoint.tinker_path} holds {theirs}, this model has {ours}: create a training"
            " client from the checkpoint instead."
        )
    theirs, ours = ({"rank": each.rank} | each.lora for each in (checkpoint.run, run))
    for name in ("rank", *LORA_FLAGS, "train_embed"):
        if theirs.get(name, False) != ours.get(name, False):
            raise UserError(
                f"{checkpoint.tinker_path} has {name} {theirs.get(name)}, this model"
                f" {ours.get(name)}: create a training client from the checkpoint instead."
            )
