"""Supervised fine-tuning: a generator of steps over the verbs. Saving and logging are its caller's.

A run that lost its driver is taken up by calling `train` again with `start`: batches, learning
rates and the order of verbs depend on the config and the rows only.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from training.data.batches import Batch, make_batches
from training.data.examples import Encoded, Example, encode_rows, to_datum
from training.data.rows import Row
from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput
from training.model import Future, Model
from training.recipes.passes import FORWARD_CONFIG, PASS_TOKENS, ask_logprobs, group_by_tokens
from training.recipes.sft_config import SftConfig
from training.recipes.steps import Order, Steer, Step, Submitted, follow_config, run_steps
from training.types import AdamParams, Datum, ForwardBackwardOutput, OptimStepOutput

# A recipe's settings and its steps are part of it.
__all__ = ["Order", "SftConfig", "Step", "held_out_loss", "prepare", "train"]


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
    train, held_out = config.split(encoded.examples)
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


def train(
    model: Model,
    prepared: Prepared,
    config: SftConfig,
    *,
    start: int = 0,
    steer: Steer = follow_config,
) -> Iterator[Step]:
    """Steps `start` + 1 to the last."""
    batches = make_batches(
        prepared.train,
        batch_size=config.batch_size,
        num_steps=prepared.num_steps,
        seed=config.seed,
        start=start,
    )

    def submit(number: int, order: Order) -> Submitted:
        adam = config.adam_at(
            number - 1, num_steps=prepared.num_steps, learning_rate=order.learning_rate
        )
        return submit_step(model, number, next(batches), adam)

    return run_steps(
        range(start + 1, prepared.num_steps + 1),
        submit,
        steer=steer,
        is_due=partial(config.is_anything_due, num_steps=prepared.num_steps),
    )


def submit_step(model: Model, number: int, batch: Batch, adam: AdamParams) -> Submitted:
    gradient = model.forward_backward(batch.data, "cross_entropy", config=FORWARD_CONFIG)
    update = model.optim_step(adam)
    read = cache(gradient.result)

    def measure() -> dict[str, float]:
        metrics = read().metrics
        # Weights sum to 1: the mean of weighted tokens.
        return {"loss": metrics["loss:sum"], **measure_update(update, batch, adam)}

    def measure_rows() -> dict[int, float]:
        return dict(zip(batch.rows, mean_losses(batch.data, read()), strict=True))

    return Submitted(number=number, batch=batch, measure=measure, measure_rows=measure_rows)


def mean_losses(data: Sequence[Datum], output: ForwardBackwardOutput) -> list[float]:
    """The mean over each datum's weighted tokens."""
    pairs = zip(data, output.logprobs, strict=True)
    return [
        float(-np.average(logprobs, weights=datum.inputs["weights"])) for datum, logprobs in pairs
    ]


def measure_update(
    update: Future[OptimStepOutput], batch: Batch, adam: AdamParams
) -> dict[str, float]:
    """What every recipe says of a step; waits for it."""
    return {
        "learning_rate": adam.learning_rate,
        "num_tokens": batch.num_tokens,
        "num_weighted_tokens": batch.num_weighted,
        "epoch": batch.epoch,
        **update.result().metrics,
    }


def held_out_loss(model: Model, examples: Sequence[Example]) -> float:
    """The mean over all weighted tokens. Every pass is submitted before the first is waited for."""
    if not examples:
        raise InvalidInput("no row is held out: raise held_out_share")
    data = map(to_datum, examples)
    passes = [ask_logprobs(model, group) for group in group_by_tokens(data, max_tokens=PASS_TOKENS)]
    total = sum(output.result().metrics["loss:sum"] for output in passes)
    return total / sum(example.num_weighted for example in examples)
