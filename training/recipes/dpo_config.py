"""The settings of direct preference optimization."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from training.data.batches import HeldOutBy
from training.data.examples import Overlong
from training.recipes.config import SHARED_CHECKS, RecipeConfig, Work
from training.recipes.fields import Check, real
from training.recipes.sft_config import OVERLONG

# Of a pair's two sequences to its texts: the prompt stands in both.
SEQUENCES_TO_TEXTS = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class DpoConfig(RecipeConfig):
    """It learns to prefer what was chosen. `batch_size` counts pairs."""

    CHECKS: ClassVar[Mapping[str, Check]] = {
        **SHARED_CHECKS,
        **OVERLONG,
        "beta": real(0, 100, above=True),
    }
    TITLE: ClassVar[str] = "DPO"
    TELLS_LOSS: ClassVar[bool] = True

    learning_rate: float = 1e-5
    held_out_by: HeldOutBy = "prompt"
    beta: float = 0.1  # how much a change of the log-probabilities counts
    overlong: Overlong = "truncate"

    def estimate_work(self, *, row_tokens: float, longest_row: float) -> Work:
        """A step reads its pairs forward, and then forward and backward; the reference reads each
        pair forward once."""
        epochs = max(1.0, self.epochs or 1.0)
        return Work(
            tokens=row_tokens * SEQUENCES_TO_TEXTS * self.batch_size,
            longest=longest_row,
            passes=1.5 + 0.5 / epochs,
        )
