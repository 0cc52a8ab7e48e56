"""Drives the training of a reward model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.data.kinds import list_sides
from training.data.rows import Row
from training.recipes import reward_model
from training.recipes.comparisons import build_messages
from training.recipes.reward_model import Prepared, RewardModelConfig
from training.recipes.steps import Step
from webapp.runs.history import record_metrics
from workers.drives import Drive, describe_rows
from workers.prompts import NUM_PROMPTS


@dataclass(slots=True, kw_only=True, eq=False)
class RewardModel(Drive[RewardModelConfig]):
    """It learns to say which of two answers was chosen."""

    prepared: Prepared = field(init=False)

    def prepare(self) -> str:
        self.prepared = reward_model.prepare(self.read_rows(), self.load_tokenizer(), self.config)
        self.num_steps = self.prepared.num_steps
        return describe_rows(self.prepared, what="pairs")

    def take_steps(self) -> Iterator[Step]:
        record_metrics(self.run, 0, self.measure())  # as good as a coin, mostly
        yield from reward_model.train(self.model, self.prepared, self.config, steer=self.steer)

    def measure(self) -> Mapping[str, float]:
        return reward_model.measure(self.model, self.prepared.held_out)

    @classmethod
    def choose_prompts(cls, rows: Sequence[Row]) -> list[list[dict[str, Any]]]:
        """Comparisons of held-out pairs, the chosen answer first and second in turn."""
        asked: list[list[dict[str, Any]]] = []
        for row in rows[:NUM_PROMPTS]:
            if sides := list_sides(row.metadata):
                first, second = sides if len(asked) % 2 == 0 else sides[::-1]
                asked.append(build_messages(row.messages, first, second))
        return asked
