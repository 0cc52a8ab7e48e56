"""A run of an engine in this process, and what samples from its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from training.engine.core import Engine
from training.engine.generate import Generator
from training.errors import InvalidInput
from training.model import Future, Sampler
from training.types import (
    AdamParams,
    CheckpointKind,
    Datum,
    ForwardBackward,
    ForwardBackwardOutput,
    OptimStepOutput,
    SampleOutput,
    SampleRequest,
    SavedWeights,
)

TINY = Path("tests/assets/tiny-chatml-1m")
T = TypeVar("T")


@dataclass(frozen=True)
class Done(Generic[T]):
    """A result that is already there."""

    value: T

    def result(self, timeout: float | None = None) -> T:
        return self.value


@dataclass(frozen=True)
class LocalModel:
    """A run of an engine in this process."""

    engine: Engine
    run: str

    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        *,
        config: Mapping[str, float | str] | None = None,
        forward_only: bool = False,
    ) -> Future[ForwardBackwardOutput]:
        request = ForwardBackward(
            data=data, loss_fn=loss_fn, config=config or {}, forward_only=forward_only
        )
        output = self.engine.forward_backward({self.run: request})[self.run]
        if isinstance(output, InvalidInput):
            raise output
        return Done(output)

    def optim_step(self, adam: AdamParams) -> Future[OptimStepOutput]:
        return Done(self.engine.optim_step(self.run, adam))

    def save_weights(
        self, name: str, *, kind: CheckpointKind, ttl_seconds: int | None = None
    ) -> Future[SavedWeights]:
        raise NotImplementedError

    def load_weights(self, path: str, *, optimizer: bool) -> Future[None]:
        raise NotImplementedError


@dataclass
class Ticket:
    """A request that is answered with all others, when the first of them is waited for."""

    sampler: "LocalSampler"
    number: int

    def result(self, timeout: float | None = None) -> SampleOutput:
        return self.sampler.find(self.number)


@dataclass
class LocalSampler:
    """A generator with one adapter, or with none."""

    generator: Generator
    adapter: str | None = None
    answers: dict[int, SampleOutput] = field(default_factory=dict)

    def sample(self, request: SampleRequest, *, about: Mapping[str, Any]) -> Ticket:
        return Ticket(self, self.generator.submit(request, adapter=self.adapter))

    def find(self, number: int) -> SampleOutput:
        while number not in self.answers:
            for finished in self.generator.step():
                assert not isinstance(finished.result, InvalidInput), finished.result
                self.answers[finished.ticket] = finished.result
        return self.answers.pop(number)


@dataclass
class LocalPolicy:
    """Saves the run's adapter after each step, for a generator of its own."""

    engine: Engine
    run: str
    folder: Path
    generator: Generator = field(default_factory=lambda: Generator.load(TINY))

    def publish(self, step: int) -> Future[Sampler]:
        name = f"step-{step}"
        self.engine.save_weights(self.run, self.folder / name, optimizer=False)
        self.generator.load_adapter(name, self.folder / name)
        return Done(LocalSampler(self.generator, name))
