"""A run's recipe between its steps: what every method does alike, whatever its steps are."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from django.conf import settings

from training.data.rows import Row
from training.data.tokenizer import ChatTokenizer
from training.data.validate import read_normalised
from training.errors import InvalidInput
from training.recipes.config import RecipeConfig
from training.recipes.steps import Order, Step
from webapp.runs import driving
from webapp.runs.driving import Cancelled
from webapp.runs.models import Run
from webapp.runs.row_losses import record_row_losses
from workers.endings import ends_early
from workers.errands import Errands, Wanted
from workers.keep_going import KeepGoing
from workers.prompts import choose_prompts
from workers.remote import RemoteModel, Waiter

ConfigT = TypeVar("ConfigT", bound=RecipeConfig)


class Prepared(Protocol):
    """What every recipe that learns from rows makes of them."""

    @property
    def train(self) -> Sized: ...
    @property
    def held_out(self) -> Sized: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def truncated(self) -> Sized: ...
    @property
    def dropped(self) -> Sized: ...


@dataclass(slots=True, kw_only=True, eq=False)
class Drive(ABC, Generic[ConfigT]):
    """The recipe's steps, and what is due between them.

    Everything that enters the log here is bound to a step, so that a replay finds it at its place.
    """

    run: Run
    model: RemoteModel
    config: ConfigT
    waiter: Waiter
    keep: KeepGoing
    num_steps: int = 0  # `prepare` sets it
    num_done: int = 0  # at the last settled step
    was_stopped: bool = False  # somebody asked for it
    settled_before: int = 0
    last_loss: float | None = None
    errands: Errands = field(init=False)

    def __post_init__(self) -> None:
        self.errands = Errands(
            run=self.run, model=self.model, config=self.config, measure=self.measure
        )

    @abstractmethod
    def prepare(self) -> str:
        """Read the rows and count the steps. The sentence about them goes into the run's log."""

    @abstractmethod
    def take_steps(self) -> Iterator[Step]:
        """The recipe's generator, steered by `steer`. The run's weights are there."""

    @abstractmethod
    def measure(self) -> Mapping[str, float]:
        """Of what is held out, with the weights of now; empty where nothing is."""

    @classmethod
    def choose_prompts(cls, rows: Sequence[Row]) -> list[list[dict[str, Any]]]:
        """What a run asks on its way that named nothing; the rows are those held out."""
        return choose_prompts(rows)

    def read_rows(self) -> Iterable[Row]:
        if self.run.dataset_version is None:
            raise InvalidInput("the run has no dataset version to learn from")
        path = Path(settings.HONE_HOME) / self.run.dataset_version.rows_path
        return self.keep.over(read_normalised(path))

    def load_tokenizer(self) -> ChatTokenizer:
        return ChatTokenizer.load(self.run.base_model.path)

    def sum_up(self) -> str:
        """What the run's last line in its log says besides."""
        return "" if self.last_loss is None else f" Its last loss was {self.last_loss:.4g}."

    def drive(self) -> None:
        self.errands.begin(sampling=self._is_due(0).samples)
        for step in self.take_steps():
            self.take_step(step)
            if step.is_settled and self.is_last(step.number):
                break
        self.errands.finish()
        self._obey()

    def take_step(self, step: Step) -> None:
        self.last_loss = step.metrics.get("loss")
        record_row_losses(self.run, step.number, step.row_losses)
        driving.record_step(self.run, step.number, step.metrics)
        self.errands.look()
        if step.is_settled:
            self.errands.run_due(step.number, self._is_due(step.number))

    def is_last(self, number: int) -> bool:
        """It ends here though steps are left. What it learned is saved."""
        self.num_done = number
        done = self._is_due(number)
        rule, is_replay = self.config.early_stop, self.model.is_replaying
        if done.evaluation and ends_early(self.run, rule, number, is_replay=is_replay):
            self.errands.run_due(number, Wanted(checkpoint=not done.checkpoint))
            return True
        self.was_stopped = done.checkpoint and not is_replay and driving.wants_stop(self.run)
        return self.was_stopped

    def _obey(self) -> None:
        """Whoever asked it to stop at its next checkpoint is told as if it had been stopped."""
        if self.was_stopped and self.num_done < self.num_steps:
            raise Cancelled

    def steer(self, number: int) -> Order:
        """Before step `number`: wishes are fulfilled behind the step before, once that is done."""
        behind = number - 1
        is_replay = self.model.is_replaying or behind == 0
        orders = driving.take_orders(self.run, behind, is_replay=is_replay)
        done = self._is_due(behind)
        wanted = Wanted(
            checkpoint=orders.save and not done.checkpoint,
            evaluation=orders.evaluate and not done.evaluation,
            samples=orders.evaluate and not done.samples and bool(self.config.sampling.prompts),
        )
        if behind and wanted.is_anything:
            if self.settled_before != number:
                self.settled_before = number
                return Order(settle=True)
            self.errands.run_due(behind, wanted)
        return Order(learning_rate=orders.learning_rate, kl_coefficient=orders.kl_coefficient)

    def _is_due(self, number: int) -> Wanted:
        num_steps = self.num_steps
        return Wanted(
            checkpoint=number > 0 and self.config.is_checkpoint_due(number, num_steps=num_steps),
            evaluation=number > 0 and self.config.is_evaluation_due(number, num_steps=num_steps),
            samples=self.config.is_sampling_due(number, num_steps=num_steps),
        )


def describe_rows(prepared: Prepared, *, what: str = "rows") -> str:
    text = f"{len(prepared.train)} {what} to learn from in {prepared.num_steps} steps"
    if prepared.held_out:
        text += f", {len(prepared.held_out)} held out"
    if prepared.truncated:
        text += f"; {len(prepared.truncated)} longer ones were cut"
    if prepared.dropped:
        text += f"; {len(prepared.dropped)} longer ones were left out"
    return text + "."
