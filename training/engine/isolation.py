"""Whether runs that share passes touch each other: eight made-up tenants, alone and together.

All that is computed for a tenant is compared: its loss, its log-probabilities and its gradients.
Sums in another order differ by rounding, and by no more than that.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from training.engine.core import Engine
from training.errors import InvalidInput
from training.types import AdamParams, Datum, FloatArray, ForwardBackward, LoraSpec

# Largest difference beside the largest number, by what the model computes in. A bfloat16 keeps 8
# bits of a number and a float16 11: as many roundings may add up as a pass of a deep model makes.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2**-5, torch.float16: 2**-8}
QUANTITIES = ("loss", "logprobs", "gradients")
PREFIX = "isolation "  # no run's id has a space
LENGTHS = (24, 17, 9)  # of each tenant's datums

# Of each tenant: rank, alpha, what it trains, and its loss.
TENANTS: Sequence[tuple[LoraSpec, str]] = (
    (LoraSpec(rank=4), "cross_entropy"),
    (LoraSpec(rank=1, alpha=8, train_mlp=False), "importance_sampling"),
    (LoraSpec(rank=8, alpha=16, train_attn=False), "ppo"),
    (LoraSpec(rank=2, train_unembed=True), "cross_entropy"),
    (LoraSpec(rank=6, alpha=12), "cispo"),
    (LoraSpec(rank=3, train_mlp=False), "dro"),
    (LoraSpec(rank=5, alpha=64), "importance_sampling"),
    (LoraSpec(rank=2, alpha=4, train_attn=False, train_unembed=True), "ppo"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Of one quantity, the largest of all tenants. `beside` is the largest number there is."""

    quantity: str
    largest: float
    beside: float
    tolerance: float

    @property
    def share(self) -> float:
        return self.largest / self.beside if self.beside else self.largest

    @property
    def is_within(self) -> bool:
        return self.share <= self.tolerance  # false of what is no number, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    dtype: str
    num_tokens: int  # of the shared pass
    differences: Sequence[Difference]

    @property
    def is_passed(self) -> bool:
        return all(difference.is_within for difference in self.differences)


Numbers = Mapping[str, FloatArray]  # by quantity


def measure_isolation(engine: Engine) -> Report:
    """Other runs' weights, gradients and optimizers are not touched, and nothing is left behind."""
    steps = walk(engine)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            report: Report = end.value
            return report


def walk(engine: Engine) -> Generator[None, None, Report]:
    """The same a pass at a time: others may have theirs between two of them."""
    requests = make_requests(engine.vocab_size, engine.context)
    with open_tenants(engine):
        engine.forward_backward(requests)
        for run in requests:  # a fresh adapter adds nothing, and half of its gradients are zero
            engine.optim_step(run, AdamParams(learning_rate=1e-3))
        alone: dict[str, Numbers] = {}
        for run, request in requests.items():
            yield
            alone |= observe(engine, {run: request})
        yield
        together = observe(engine, requests)
    dtype = engine.adapters.head.weight.dtype
    return Report(
        dtype=str(dtype).removeprefix("torch."),
        num_tokens=sum(request.num_tokens for request in requests.values()),
        differences=[
            compare(quantity, alone, together, TOLERANCES[dtype]) for quantity in QUANTITIES
        ],
    )


@contextmanager
def open_tenants(engine: Engine) -> Iterator[None]:
    try:
        for number, (spec, _) in enumerate(TENANTS):
            engine.create_adapter(f"{PREFIX}{number}", spec)
        yield
    finally:
        for number in range(len(TENANTS)):
            engine.drop(f"{PREFIX}{number}")


def make_requests(vocab_size: int, context: int) -> dict[str, ForwardBackward]:
    """The same for every model of that size."""
    return {
        f"{PREFIX}{number}": ForwardBackward(
            data=[make_datum(number, min(length, context), vocab_size) for length in LENGTHS],
            loss_fn=loss_fn,
        )
        for number, (_, loss_fn) in enumerate(TENANTS)
    }


def make_datum(tenant: int, length: int, vocab_size: int) -> Datum:
    random = np.random.default_rng([tenant, length])
    ids = random.integers(0, vocab_size, length + 1)
    return Datum(
        tokens=ids[:-1],
        inputs={
            "target_tokens": ids[1:],
            "weights": random.uniform(0.2, 1.5, length).astype(np.float32),
            "advantages": random.normal(size=length).astype(np.float32),
            "logprobs": (random.normal(size=length) - np.log(vocab_size)).astype(np.float32),
        },
    )


def observe(engine: Engine, requests: Mapping[str, ForwardBackward]) -> dict[str, Numbers]:
    """What a pass gives each tenant; its gradients are dropped again."""
    outputs = engine.forward_backward(requests)
    seen: dict[str, Numbers] = {}
    for run, output in outputs.items():
        if isinstance(output, InvalidInput):
            raise output
        seen[run] = {
            "loss": np.array([output.metrics["loss:sum"]], np.float32),
            "logprobs": np.concatenate(output.logprobs),
            "gradients": engine.adapters.by_run[run].gradients.cpu().numpy().copy(),
        }
        engine.drop_gradients(run)
    return seen


def compare(
    quantity: str, alone: Mapping[str, Numbers], together: Mapping[str, Numbers], tolerance: float
) -> Difference:
    """Each tenant beside its own numbers; the worst of them is told."""
    differences = [
        Difference(
            quantity=quantity,
            largest=float(np.abs(together[run][quantity] - numbers[quantity]).max()),
            beside=float(np.abs(numbers[quantity]).max()),
            tolerance=tolerance,
        )
        for run, numbers in alone.items()
    ]
    return max(differences, key=lambda each: (not each.is_within, each.share))
