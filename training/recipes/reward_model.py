"""A reward model: it is shown two answers, in both orders, and learns to say which was chosen."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from training.data.batches import Batch, draw_batches, make_batch
from training.data.examples import Example, encode_row
from training.data.kinds import list_sides
from training.data.rows import Row
from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput
from training.model import Model
from training.recipes.comparisons import LABELS, build_messages, encode_label
from training.recipes.passes import FORWARD_CONFIG, read_logprobs
from training.recipes.reward_model_config import RewardModelConfig
from training.recipes.sft import mean_losses, measure_update
from training.recipes.steps import Order, Steer, Step, Submitted, follow_config, run_steps
from training.types import AdamParams, Datum, FloatArray

# A recipe's settings are part of it.
__all__ = ["Prepared", "RewardModelConfig", "measure", "prepare", "train"]

EVEN = math.log(0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One order of a pair: the question with the right label, and the label that is wrong."""

    example: Example
    wrong: int  # token id

    @property
    def place(self) -> int:
        """Of the label among the targets."""
        return int(self.example.mask.argmax()) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedPair:
    """Both orders of a pair: they stand on the same side of the split, and in the same batch."""

    number: int
    key: bytes
    prompt_key: bytes
    orders: tuple[Comparison, Comparison]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Pairs made ready for one config: what is learned, what is only measured."""

    train: Sequence[ComparedPair]
    held_out: Sequence[ComparedPair]
    num_steps: int
    dropped: Sequence[int]  # row numbers
    truncated: Sequence[int] = ()  # none is: without its end a comparison asks nothing


def prepare(rows: Iterable[Row], tokenizer: ChatTokenizer, config: RewardModelConfig) -> Prepared:
    limits = [limit for limit in (config.max_length, tokenizer.max_length) if limit is not None]
    pairs: list[ComparedPair] = []
    dropped: list[int] = []
    for row in rows:
        pair = compare_sides(row, tokenizer)
        longest = max(len(order.example.tokens) for order in pair.orders)
        if longest > min(limits, default=2**31):
            dropped.append(row.number)
        else:
            pairs.append(pair)
    train, held_out = config.split(pairs)
    if not train:
        raise InvalidInput(
            f"none of the {len(pairs)} pairs is left to train on: lower held_out_share "
            f"({len(held_out)} pairs) or raise max_length ({len(dropped)} dropped)"
        )
    return Prepared(
        train=train,
        held_out=held_out,
        num_steps=config.count_steps(len(train)),
        dropped=dropped,
    )


def compare_sides(row: Row, tokenizer: ChatTokenizer) -> ComparedPair:
    sides = list_sides(row.metadata)
    if sides is None:
        raise InvalidInput(f"row {row.number} is no preference pair: it lacks chosen or rejected")
    chosen, rejected = sides
    first = make_comparison(row, tokenizer, (chosen, rejected), LABELS)
    second = make_comparison(row, tokenizer, (rejected, chosen), LABELS[::-1])
    return ComparedPair(
        number=row.number, key=row.key, prompt_key=row.prompt_key, orders=(first, second)
    )


def make_comparison(
    row: Row,
    tokenizer: ChatTokenizer,
    answers: tuple[Sequence[dict[str, str]], Sequence[dict[str, str]]],
    labels: Sequence[str],
) -> Comparison:
    right, wrong = labels
    question = build_messages(row.messages, *answers)
    answered = [*question, {"role": "assistant", "content": right}]
    example = encode_row(Row(number=row.number, messages=answered), tokenizer)
    return Comparison(example=example, wrong=encode_label(tokenizer, question, wrong)[1])


def train(
    model: Model,
    prepared: Prepared,
    config: RewardModelConfig,
    *,
    start: int = 0,
    steer: Steer = follow_config,
) -> Iterator[Step]:
    """Steps `start` + 1 to the last."""
    batches = draw_batches(
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
        asked = [order for pair in next(batches) for order in pair.orders]
        epoch = number * config.batch_size / len(prepared.train)
        return submit_step(model, number, asked, epoch, adam)

    return run_steps(
        range(start + 1, prepared.num_steps + 1),
        submit,
        steer=steer,
        is_due=partial(config.is_anything_due, num_steps=prepared.num_steps),
    )


def submit_step(
    model: Model, number: int, asked: Sequence[Comparison], epoch: float, adam: AdamParams
) -> Submitted:
    batch: Batch = make_batch([each.example for each in asked], epoch=epoch)
    gradient = model.forward_backward(batch.data, "cross_entropy", config=FORWARD_CONFIG)
    update = model.optim_step(adam)
    read = cache(gradient.result)

    def measure() -> dict[str, float]:
        output = read()
        told = zip(asked, output.logprobs, strict=True)
        right = [float(logprobs[each.place]) > EVEN for each, logprobs in told]
        return {
            "loss": output.metrics["loss:sum"],
            "comparison/accuracy": float(np.mean(right)),
            **measure_update(update, batch, adam),
        }

    def measure_rows() -> dict[int, float]:
        losses = mean_losses(batch.data, read())
        both = zip(losses[::2], losses[1::2], strict=True)
        return {
            row: (one + other) / 2 for row, (one, other) in zip(batch.rows[::2], both, strict=True)
        }

    return Submitted(number=number, batch=batch, measure=measure, measure_rows=measure_rows)


def measure(model: Model, pairs: Sequence[ComparedPair]) -> dict[str, float]:
    """Of held-out pairs, in both orders; empty where there are none."""
    asked = [order for pair in pairs for order in pair.orders]
    if not asked:
        return {}
    answers = list(read_logprobs(model, [ask_both(each) for each in asked]))
    num_weighted = sum(each.example.num_weighted for each in asked)
    total = sum(float(answer[:, 0].sum(dtype=np.float64)) for answer in answers)
    right = [is_right(each, answer) for each, answer in zip(asked, answers, strict=True)]
    return {"held_out_loss": -total / num_weighted, "held_out/accuracy": float(np.mean(right))}


def ask_both(comparison: Comparison) -> Datum:
    """Beside every target the wrong label, where the right one stands."""
    tokens = comparison.example.tokens.astype(np.int64)
    mask = comparison.example.mask[1:]
    targets = np.stack([tokens[1:], tokens[1:]], axis=1)
    weights = np.stack([mask, np.zeros_like(mask)], axis=1).astype(np.float32)
    targets[comparison.place, 1] = comparison.wrong
    weights[comparison.place, 1] = 1.0
    return Datum(tokens=tokens[:-1], inputs={"target_tokens": targets, "weights": weights})


def is_right(comparison: Comparison, logprobs: FloatArray) -> bool:
    right, wrong = logprobs[comparison.place]
    return bool(right > wrong)
