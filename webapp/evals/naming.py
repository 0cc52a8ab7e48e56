"""What an evaluation is of, as a person calls it."""

from webapp.checkpoints.models import Checkpoint
from webapp.evals.models import Evaluation


def name_subject(evaluation: Evaluation) -> str:
    """Short enough for a column: the model's own name, or the run's and the step."""
    if evaluation.checkpoint is None:
        return evaluation.base_model.short_name
    return name_checkpoint(evaluation.checkpoint)


def name_checkpoint(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.run.name}, step {checkpoint.step}"
