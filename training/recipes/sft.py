"""Supervised fine-tuning: a generator of steps over the verbs. Saving and logging are its caller's.

A run that lost its driver is taken up by calling `train` again with `start`: batches, learning
rates and the order of verbs depend on the config and the rows only.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from training.data.batches import Batch, make_batches, split_held_out
from training.data.examples import Encoded, Example, encode_rows, to_datum
from training.data.rows import Row
from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput
from training.model import Future, Model
from training.recipes.sft_config import SamplingConfig, SftConfig
from training.types import AdamParams, Datum, ForwardBackwardOutput, OptimStepOutput

# A recipe's settings are part of it.
__all__ = ["SamplingConfig", "SftConfig", "held_out_loss", "prepare", "train"]

# The engine then projects only positions with a weight, and sends no other logprobs back.
FORWARD_CONFIG: Mapping[str, float | str] = {"logprobs": "weighted"}
HELD_OUT_TOKENS = 4096  # a pass: other runs wait for one at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A dataset made ready for one config: what is learned, what is only measured."""

    train: Sequence[Example]
    held_out: Sequence[Example]
    num_steps: int
    truncated: Sequence[int]  # row numbers
    dropped: Sequence[int]


def prepare(rows: Iterable[Row], tokenizer: ChatTokenizer, config: SftConfig) -> Prepared:
    encoded = encode_for(rows, tokenizer, config)
    train, held_out = split_held_out(
        encoded.examples, share=config.held_out_share, seed=config.seed
    )
    if not train:
        raise InvalidInput(
            f"none of the {len(encoded.examples)} rows is left to train on: lower held_out_share "
            f"({len(held_out)} rows) or raise max_length ({len(encoded.dropped)} dropped)"
        )
    return Prepared(
        train=train,
        held_out=held_out,
        num_steps=config.count_steps(len(train)),
        truncated=encoded.truncated,
        dropped=encoded.dropped,
    )


def encode_for(rows: Iterable[Row], tokenizer: ChatTokenizer, config: SftConfig) -> Encoded:
    """A limit above the model's context would fail in the middle of the run."""
    limits = [limit for limit in (config.max_length, tokenizer.max_length) if limit is not None]
    return encode_rows(
        rows, tokenizer, max_length=min(limits, default=2**31), overlong=config.overlong
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the caller wants of the next step. `settle`: first let all submitted ones end."""

    learning_rate: float | None = None
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A step on its way."""

    number: int
    batch: Batch
    learning_rate: float
    gradient: Future[ForwardBackwardOutput]
    update: Future[OptimStepOutput]


def follow_config(_number: int) -> Order:
    return Order()


def train(
    model: Model,
    prepared: Prepared,
    config: SftConfig,
    *,
    start: int = 0,
    steer: Callable[[int], Order] = follow_config,
) -> Iterator[Step]:
    """Steps `start` + 1 to the last. `steer` is asked with a step's number before it is submitted.

    One step is submitted ahead, so that the device never waits for this process; not over a step
    at which the config has something saved, measured or sampled.
    """
    flight: deque[Submitted] = deque()
    batches = make_batches(
        prepared.train,
        batch_size=config.batch_size,
        num_steps=prepared.num_steps,
        seed=config.seed,
        start=start,
    )
    for number, batch in enumerate(batches, start=start + 1):
        order = steer(number)
        if order.settle:
            yield from finish_steps(flight, keep=0)
            order = steer(number)
        adam = config.adam_at(
            number - 1, num_steps=prepared.num_steps, learning_rate=order.learning_rate
        )
        flight.append(submit_step(model, number, batch, adam))
        is_due = config.is_anything_due(number, num_steps=prepared.num_steps)
        yield from finish_steps(flight, keep=0 if is_due else 1)
    yield from finish_steps(flight, keep=0)


def submit_step(model: Model, number: int, batch: Batch, adam: AdamParams) -> Submitted:
    gradient = model.forward_backward(batch.data, "cross_entropy", config=FORWARD_CONFIG)
    return Submitted(
        number=number,
        batch=batch,
        learning_rate=adam.learning_rate,
        gradient=gradient,
        update=model.optim_step(adam),
    )


def finish_steps(flight: deque[Submitted], *, keep: int) -> Iterator[Step]:
    while len(flight) > keep:
        submitted = flight.popleft()
        metrics = measure_step(submitted)
        yield Step(
            number=submitted.number,
            batch=submitted.batch,
            metrics=metrics,
            is_settled=not flight,
        )


def measure_step(submitted: Submitted) -> dict[str, float]:
    gradient, update = submitted.gradient.result(), submitted.update.result()
    return {
        "loss": gradient.metrics["loss:sum"],  # weights sum to 1: the mean of weighted tokens
        "learning_rate": submitted.learning_rate,
        "num_tokens": submitted.batch.num_tokens,
        "num_weighted_tokens": submitted.batch.num_weighted,
        "epoch": submitted.batch.epoch,
        **update.metrics,
    }


def held_out_loss(model: Model, examples: Sequence[Example]) -> float:
    """The mean over all weighted tokens. Every pass is submitted before the first is waited for."""
    if not examples:
        raise InvalidInput("no row is held out: raise held_out_share")
    passes = [
        model.forward_backward(data, "cross_entropy", config=FORWARD_CONFIG, forward_only=True)
        for data in group_by_tokens(examples, max_tokens=HELD_OUT_TOKENS)
    ]
    total = sum(output.result().metrics["loss:sum"] for output in passes)
    return total / sum(example.num_weighted for example in examples)


def group_by_tokens(examples: Sequence[Example], *, max_tokens: int) -> Iterator[list[Datum]]:
    group: list[Datum] = []
    num_tokens = 0
    for example in examples:
        if group and num_tokens + len(example.tokens) > max_tokens:
            yield group
            group, num_tokens = [], 0
        group.append(to_datum(example))
        num_tokens += len(example.tokens)
    if group:
        yield group
