"""The settings of a reward model."""

from dataclasses import dataclass
from typing import ClassVar

from training.data.batches import HeldOutBy
from training.recipes.config import RecipeConfig, Work

QUESTION_TOKENS = 30  # of a comparison: who asks what, in most vocabularies


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelConfig(RecipeConfig):
    """It learns to say which of two answers was chosen. `batch_size` counts pairs; each is asked
    in both orders."""

    TITLE: ClassVar[str] = "reward model"

    learning_rate: float = 3e-4
    held_out_by: HeldOutBy = "prompt"

    def estimate_work(self, *, row_tokens: float, longest_row: float) -> Work:
        asked = row_tokens + QUESTION_TOKENS
        return Work(tokens=2 * asked * self.batch_size, longest=longest_row + QUESTION_TOKENS)
