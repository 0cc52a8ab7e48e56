"""The seam of every recipe: four verbs to a Model, one to a Sampler, each answered by a Future."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from training.types import (
    AdamParams,
    CheckpointKind,
    Datum,
    ForwardBackwardOutput,
    OptimStepOutput,
    SampleOutput,
    SampleRequest,
    SavedWeights,
)

T_co = TypeVar("T_co", covariant=True)


class Future(Protocol[T_co]):
    """A result that is being made. `result` waits, and raises what went wrong."""

    def result(self, timeout: float | None = None) -> T_co: ...


class Model(Protocol):
    """One run's trainable weights. Verbs are executed in the order they were called."""

    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        *,
        config: Mapping[str, float | str] | None = None,
        forward_only: bool = False,
    ) -> Future[ForwardBackwardOutput]: ...

    def optim_step(self, adam: AdamParams) -> Future[OptimStepOutput]: ...

    def save_weights(
        self, name: str, *, kind: CheckpointKind, ttl_seconds: int | None = None
    ) -> Future[SavedWeights]: ...

    def load_weights(self, path: str, *, optimizer: bool) -> Future[None]: ...


class Sampler(Protocol):
    """What answers prompts with the weights it was opened on."""

    def sample(self, request: SampleRequest, *, about: Mapping[str, Any]) -> Future[SampleOutput]:
        """`about` says which of its asker's requests this is: one that is repeated is the same."""
        ...
