"""A run's weights, gradients and moments away from the device and back, bit for bit."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from training.engine.core import Engine
from training.engine.optim import OptimizerState, Weights, name_optimizer
from training.engine.steps import Counts
from training.types import LoraSpec, Optimizer

HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What makes a run on an engine again. Gradients: where there are any."""

    spec: LoraSpec
    kind: Optimizer
    values: torch.Tensor
    gradients: torch.Tensor | None
    moments: Mapping[str, torch.Tensor]
    num_steps: int
    counts: Counts

    @property
    def num_bytes(self) -> int:
        tensors = [self.values, *self.moments.values()]
        return sum(tensor.nbytes for tensor in tensors) + (
            0 if self.gradients is None else self.gradients.nbytes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBytes:
    """Of one run, where it is trained."""

    adapter: int  # with its gradients
    optimizer: int

    @property
    def total(self) -> int:
        return self.adapter + self.optimizer


def measure_run(engine: Engine, run: str) -> RunBytes:
    """Nothing of a run that has no weights there. Another thread may ask meanwhile."""
    full, state = engine.full, engine.optimizers.get(run)
    is_own = full is not None and full.name == run
    weights = full.weights if full and is_own else engine.adapters.by_run.get(run)
    if weights is None or state is None:
        return RunBytes(adapter=0, optimizer=0)
    return RunBytes(
        adapter=weights.values.nbytes + weights.gradients.nbytes,
        optimizer=sum(moment.nbytes for moment in state.moments.values()),
    )


def page_out(engine: Engine, run: str, host: torch.device = HOST) -> Page:
    """The engine forgets the run; one that trains all weights cannot leave its model so."""
    weights, state = engine.find_weights(run), engine.optimizers[run]
    assert not weights.spec.is_full
    page = Page(
        spec=weights.spec,
        kind=name_optimizer(state),
        values=weights.values.detach().to(host, copy=True),
        gradients=weights.gradients.to(host, copy=True) if weights.has_gradients else None,
        moments={name: flat.to(host, copy=True) for name, flat in state.moments.items()},
        num_steps=state.num_steps,
        counts=weights.counts,
    )
    engine.drop(run)
    return page


def page_in(engine: Engine, run: str, page: Page) -> None:
    engine.create_adapter(run, page.spec, page.kind)
    fill(engine.find_weights(run), engine.optimizers[run], page)


def fill(weights: Weights, state: OptimizerState, page: Page) -> None:
    with torch.no_grad():
        weights.values.copy_(page.values)
        for name, flat in state.moments.items():
            flat.copy_(page.moments[name])
        if page.gradients is not None:
            weights.gradients.copy_(page.gradients)
    weights.has_gradients, weights.counts = page.gradients is not None, page.counts
    state.num_steps = page.num_steps
