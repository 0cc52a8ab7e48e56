"""Drives direct preference optimization."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from training.recipes import dpo
from training.recipes.dpo import DpoConfig, Prepared
from training.recipes.steps import Step
from webapp.runs.history import record_metrics
from workers.drives import Drive, describe_rows


@dataclass(slots=True, kw_only=True, eq=False)
class Dpo(Drive[DpoConfig]):
    """The run measures its own first weights, and then learns to prefer against them."""

    prepared: Prepared = field(init=False)
    reference: Mapping[int, tuple[float, float]] = field(init=False)

    def prepare(self) -> str:
        self.prepared = dpo.prepare(self.read_rows(), self.load_tokenizer(), self.config)
        self.num_steps = self.prepared.num_steps
        return describe_rows(self.prepared, what="pairs")

    def take_steps(self) -> Iterator[Step]:
        self.errands.say("Measuring the reference: what the first weights think of each pair.", 0)
        self.reference = dpo.measure_reference(self.model, self.prepared, self.config)
        first = dpo.measure_first(self.prepared.held_out, reference=self.reference)
        record_metrics(self.run, 0, first)
        yield from dpo.train(
            self.model, self.prepared, self.config, reference=self.reference, steer=self.steer
        )

    def measure(self) -> Mapping[str, float]:
        return dpo.measure(
            self.model,
            self.prepared.held_out,
            reference=self.reference,
            beta=self.config.beta,
        )
