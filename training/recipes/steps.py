"""Optimizer steps on their way: submitted ahead of the device, and told when they are done."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from training.data.batches import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the caller wants of the next step. `settle`: first let all submitted ones end."""

    learning_rate: float | None = None
    kl_coefficient: float | None = None
    settle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimizer step, done. `number` counts from 1.

    `is_settled`: no later step was submitted, so weights saved or asked now are this step's.
    """

    number: int
    batch: Batch
    metrics: Mapping[str, float]
    is_settled: bool
    row_losses: Mapping[int, float] = field(default_factory=dict)  # before the step, by row number


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A step on its way. `measure` waits for it and says what it brought."""

    number: int
    batch: Batch
    measure: Callable[[], Mapping[str, float]]
    measure_rows: Callable[[], Mapping[int, float]] = dict


Steer = Callable[[int], Order]


def follow_config(_number: int) -> Order:
    return Order()


def run_steps(
    numbers: Iterable[int],
    submit: Callable[[int, Order], Submitted],
    *,
    steer: Steer,
    is_due: Callable[[int], bool],
) -> Iterator[Step]:
    """`steer` is asked with a step's number before it is submitted.

    One step is submitted ahead, so that the device never waits for this process; not over a step
    at which something is due: saved, measured or sampled.
    """
    flight: deque[Submitted] = deque()
    for number in numbers:
        order = steer(number)
        if order.settle:
            yield from finish_steps(flight, keep=0)
            order = steer(number)
        flight.append(submit(number, order))
        yield from finish_steps(flight, keep=0 if is_due(number) else 1)
    yield from finish_steps(flight, keep=0)


def finish_steps(flight: deque[Submitted], *, keep: int) -> Iterator[Step]:
    while len(flight) > keep:
        submitted = flight.popleft()
        metrics = submitted.measure()
        yield Step(
            number=submitted.number,
            batch=submitted.batch,
            metrics=metrics,
            is_settled=not flight,
            row_losses=submitted.measure_rows(),
        )
