"""Direct preference optimization: the chosen answer becomes likelier than the rejected one, as
measured against the weights that the run begins with (arXiv 2305.18290).

The reference is measured by the run itself before its first step, so a replay finds it in the log.
The gradient is exact: a step asks for the log-probabilities first, and then lets every token weigh
what the loss changes with its log-probability.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from training.data.batches import Batch, draw_batches, scale_weights
from training.data.examples import Example, to_datum
from training.data.pairs import Pair, encode_pairs
from training.data.rows import Row
from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput
from training.model import Model
from training.recipes.dpo_config import DpoConfig
from training.recipes.passes import FORWARD_CONFIG, ask_logprobs, read_logprobs
from training.recipes.sft import measure_update
from training.recipes.steps import Order, Steer, Step, Submitted, follow_config, run_steps
from training.types import AdamParams, Datum, FloatArray

# A recipe's settings are part of it.
__all__ = ["DpoConfig", "Prepared", "measure", "measure_reference", "prepare", "train"]

Sums = tuple[float, float]  # log-probabilities of the chosen answer and of the rejected one
Reference = Mapping[int, Sums]  # by the pair's number


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Pairs made ready for one config: what is learned, what is only measured."""

    train: Sequence[Pair]
    held_out: Sequence[Pair]
    num_steps: int
    truncated: Sequence[int]  # row numbers
    dropped: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """What a batch of pairs is worth. `pushes[i]`: what the loss falls by with the log-probability
    of pair i's chosen answer; it rises as much with that of the rejected one."""

    metrics: Mapping[str, float]
    losses: Sequence[float]  # of each pair
    pushes: Sequence[float]


def prepare(rows: Iterable[Row], tokenizer: ChatTokenizer, config: DpoConfig) -> Prepared:
    limits = [limit for limit in (config.max_length, tokenizer.max_length) if limit is not None]
    encoded = encode_pairs(
        rows, tokenizer, max_length=min(limits, default=2**31), overlong=config.overlong
    )
    train, held_out = config.split(encoded.pairs)
    if not train:
        raise InvalidInput(
            f"none of the {len(encoded.pairs)} pairs is left to train on: lower held_out_share "
            f"({len(held_out)} pairs) or raise max_length ({len(encoded.dropped)} dropped)"
        )
    return Prepared(
        train=train,
        held_out=held_out,
        num_steps=config.count_steps(len(train)),
        truncated=encoded.truncated,
        dropped=encoded.dropped,
    )


def measure_reference(model: Model, prepared: Prepared, config: DpoConfig) -> Reference:
    """Before the first step: of every pair that the run is going to look at."""
    seen = [pair for batch in list_batches(prepared, config) for pair in batch]
    pairs = list({pair.number: pair for pair in (*seen, *prepared.held_out)}.values())
    sums = sum_logprobs(model, [side for pair in pairs for side in pair.sides])
    return {pair.number: (next(sums), next(sums)) for pair in pairs}


def list_batches(prepared: Prepared, config: DpoConfig, start: int = 0) -> Iterator[list[Pair]]:
    return draw_batches(
        prepared.train,
        batch_size=config.batch_size,
        num_steps=prepared.num_steps,
        seed=config.seed,
        start=start,
    )


def sum_logprobs(model: Model, examples: Sequence[Example]) -> Iterator[float]:
    """Of each example's answer, in their order."""
    data = [to_datum(example) for example in examples]
    yield from add_logprobs(data, read_logprobs(model, data))


def add_logprobs(data: Sequence[Datum], logprobs: Iterable[FloatArray]) -> list[float]:
    return [
        float(np.dot(of_datum.astype(np.float64), datum.inputs["weights"]))
        for datum, of_datum in zip(data, logprobs, strict=True)
    ]


def train(
    model: Model,
    prepared: Prepared,
    config: DpoConfig,
    *,
    reference: Reference,
    start: int = 0,
    steer: Steer = follow_config,
) -> Iterator[Step]:
    """Steps `start` + 1 to the last."""
    batches = list_batches(prepared, config, start)

    def submit(number: int, order: Order) -> Submitted:
        adam = config.adam_at(
            number - 1, num_steps=prepared.num_steps, learning_rate=order.learning_rate
        )
        epoch = number * config.batch_size / len(prepared.train)
        batch = make_batch(next(batches), epoch=epoch)
        return submit_step(model, number, batch, adam, reference=reference, beta=config.beta)

    return run_steps(
        range(start + 1, prepared.num_steps + 1),
        submit,
        steer=steer,
        is_due=partial(config.is_anything_due, num_steps=prepared.num_steps),
    )


def make_batch(pairs: Sequence[Pair], *, epoch: float) -> Batch:
    """Each pair's chosen and then its rejected answer; every token of an answer weighs 1."""
    sides = [side for pair in pairs for side in pair.sides]
    return Batch(
        data=tuple(to_datum(side) for side in sides),
        rows=tuple(pair.number for pair in pairs),
        epoch=epoch,
        num_tokens=sum(len(side.tokens) - 1 for side in sides),
        num_weighted=sum(side.num_weighted for side in sides),
    )


def submit_step(
    model: Model, number: int, batch: Batch, adam: AdamParams, *, reference: Reference, beta: float
) -> Submitted:
    sums = add_logprobs(batch.data, ask_logprobs(model, batch.data).result().logprobs)
    found = weigh(sums, [reference[row] for row in batch.rows], beta=beta)
    factors = [sign * push for push in found.pushes for sign in (1.0, -1.0)]
    data = [scale_weights(datum, factor) for datum, factor in zip(batch.data, factors, strict=True)]
    gradient = model.forward_backward(data, "cross_entropy", config=FORWARD_CONFIG)
    update = model.optim_step(adam)

    def measure() -> dict[str, float]:
        gradient.result()
        loss = found.metrics["dpo/loss"]
        return {"loss": loss, **found.metrics, **measure_update(update, batch, adam)}

    def measure_rows() -> dict[int, float]:
        return dict(zip(batch.rows, found.losses, strict=True))

    return Submitted(number=number, batch=batch, measure=measure, measure_rows=measure_rows)


def weigh(sums: Sequence[float], reference: Sequence[Sums], *, beta: float) -> Preferences:
    """`sums` are those of chosen, rejected, chosen ... answers."""
    before = np.asarray(reference, dtype=np.float64)  # (P, 2)
    rewards = beta * (np.asarray(sums, dtype=np.float64).reshape(-1, 2) - before)
    margins = rewards[:, 0] - rewards[:, 1]
    losses = np.logaddexp(0.0, -margins)
    metrics = {
        "dpo/loss": losses.mean(),
        "dpo/accuracy": (margins > 0).mean(),
        "dpo/margin": margins.mean(),
        "dpo/chosen_reward": rewards[:, 0].mean(),
        "dpo/rejected_reward": rewards[:, 1].mean(),
    }
    # The derivative of log(1 + exp(-m)) is -(1 - exp(-loss)).
    pushes = -beta * np.expm1(-losses) / len(margins)
    return Preferences(
        metrics={key: float(value) for key, value in metrics.items()},
        losses=losses.tolist(),
        pushes=pushes.tolist(),
    )


def measure(
    model: Model, pairs: Sequence[Pair], *, reference: Reference, beta: float
) -> dict[str, float]:
    """Of held-out pairs; empty where there are none."""
    if not pairs:
        return {}
    sums = list(sum_logprobs(model, [side for pair in pairs for side in pair.sides]))
    found = weigh(sums, [reference[pair.number] for pair in pairs], beta=beta).metrics
    return {
        "held_out_loss": found["dpo/loss"],
        "held_out/accuracy": found["dpo/accuracy"],
        "held_out/margin": found["dpo/margin"],
        "held_out/preferred": share_preferred(zip(sums[::2], sums[1::2], strict=True)),
    }


def measure_first(pairs: Sequence[Pair], *, reference: Reference) -> dict[str, float]:
    """Of held-out pairs before the first step, where nothing differs from the reference yet."""
    preferred = share_preferred(reference[pair.number] for pair in pairs)
    return {"held_out/preferred": preferred} if pairs else {}


def share_preferred(sums: Iterable[Sums]) -> float:
    """Pairs whose chosen answer is likelier than the rejected one, whatever the reference says."""
    return float(np.mean([chosen > rejected for chosen, rejected in sums] or [False]))
