"""Drives supervised fine-tuning."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from training.recipes import sft
from training.recipes.sft import Prepared, SftConfig, Step
from workers.drives import Drive, describe_rows


@dataclass(slots=True, kw_only=True, eq=False)
class Sft(Drive[SftConfig]):
    """One pass over the rows after the other."""

    prepared: Prepared = field(init=False)

    def prepare(self) -> str:
        self.prepared = sft.prepare(self.read_rows(), self.load_tokenizer(), self.config)
        self.num_steps = self.prepared.num_steps
        return describe_rows(self.prepared)

    def take_steps(self) -> Iterator[Step]:
        return sft.train(self.model, self.prepared, self.config, steer=self.steer)

    def measure(self) -> Mapping[str, float]:
        held_out = self.prepared.held_out
        return {"held_out_loss": sft.held_out_loss(self.model, held_out)} if held_out else {}
