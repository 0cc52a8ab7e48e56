"""Examples -> a held-out part and batches, the same on every machine and on every start.

Order comes from hashes, not from a random generator: no library's stream has to stay as it is.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import ceil
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np

from training.data.examples import Example, to_datum
from training.errors import InvalidInput
from training.types import Datum


class Keyed(Protocol):
    @property
    def key(self) -> bytes: ...


class Asked(Keyed, Protocol):
    @property
    def prompt_key(self) -> bytes: ...


HeldOutBy = Literal["row", "prompt"]
KeyedT = TypeVar("KeyedT", bound=Keyed)
AskedT = TypeVar("AskedT", bound=Asked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one optimizer step learns from. The weights of all datums together sum to 1."""

    data: tuple[Datum, ...]
    rows: tuple[int, ...]  # their numbers in the dataset version
    epoch: float  # how often the rows have been seen after it: 0.5 is half of them
    num_tokens: int
    num_weighted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will do, before it does it."""

    num_train: int
    num_held_out: int
    num_steps: int
    epochs: float
    tokens_per_step: float
    weighted_per_step: float
    num_tokens: int  # trained on in all steps
    num_held_out_tokens: int
    longest: int


def draw(key: bytes, *, seed: int, purpose: str) -> int:
    """A uniform number of 64 bits that depends on nothing else."""
    salted = f"{purpose}/{seed}/".encode() + key
    return int.from_bytes(blake2b(salted, digest_size=8).digest(), "big")


def is_held_out(key: bytes, *, share: float, seed: int, num_splits: int = 0) -> bool:
    """`num_splits`: how often the rows were split before. With the same numbers as then, all that
    was left to train on would fall on that side again."""
    return draw(key, seed=seed, purpose=name_split(num_splits)) < share * 2**64


def name_split(num_splits: int) -> str:
    return f"split {num_splits + 1}" if num_splits else "split"


def split_held_out(
    items: Iterable[AskedT], *, share: float, seed: int, by: HeldOutBy = "row", num_splits: int = 0
) -> tuple[list[AskedT], list[AskedT]]:
    """(train, held out). An item's side depends on its content: equal rows never stand on both,
    nor, by prompt, rows that ask the same."""
    train: list[AskedT] = []
    held_out: list[AskedT] = []
    for item in items:
        key = item.prompt_key if by == "prompt" else item.key
        is_out = is_held_out(key, share=share, seed=seed, num_splits=num_splits)
        (held_out if is_out else train).append(item)
    return train, held_out


def order_epoch(items: Sequence[KeyedT], *, seed: int, epoch: int) -> list[KeyedT]:
    """A shuffle. Equal rows are told apart by their place."""

    def rank(place: int) -> int:
        key = items[place].key + place.to_bytes(8, "big")
        return draw(key, seed=seed, purpose=f"epoch {epoch}")

    return [items[place] for place in sorted(range(len(items)), key=rank)]


@dataclass(slots=True, kw_only=True)
class Epochs(Generic[KeyedT]):
    """Shuffled items, epoch after epoch, from any place on. An epoch is shuffled once, however many
    batches are taken of it."""

    items: Sequence[KeyedT]
    seed: int
    _made: dict[int, list[KeyedT]] = field(default_factory=dict)

    def take(self, start: int, num: int) -> list[KeyedT]:
        epoch, skipped = divmod(start, len(self.items))
        taken: list[KeyedT] = []
        while len(taken) < num:
            taken += self._order(epoch)[skipped : skipped + num - len(taken)]
            epoch, skipped = epoch + 1, 0
        return taken

    def _order(self, epoch: int) -> list[KeyedT]:
        if epoch not in self._made:
            # A batch begins in one and ends in the next: no other is looked at again soon.
            self._made = {each: self._made[each] for each in self._made if each == epoch - 1}
            self._made[epoch] = order_epoch(self.items, seed=self.seed, epoch=epoch)
        return self._made[epoch]


def draw_batches(
    items: Sequence[KeyedT], *, batch_size: int, num_steps: int, seed: int, start: int = 0
) -> Iterator[list[KeyedT]]:
    """Those of steps `start` + 1 to the last. Epochs follow each other without a gap in a batch."""
    if not items:
        raise InvalidInput("no row is left to train on: hold out fewer, or allow longer rows")
    epochs = Epochs(items=items, seed=seed)
    for step in range(start, num_steps):
        yield epochs.take(step * batch_size, batch_size)


def make_batches(
    examples: Sequence[Example], *, batch_size: int, num_steps: int, seed: int, start: int = 0
) -> Iterator[Batch]:
    """Batches `start` to `num_steps`."""
    drawn = draw_batches(
        examples, batch_size=batch_size, num_steps=num_steps, seed=seed, start=start
    )
    for step, chosen in enumerate(drawn, start + 1):
        yield make_batch(chosen, epoch=step * batch_size / len(examples))


def make_batch(examples: Sequence[Example], *, epoch: float) -> Batch:
    num_weighted = sum(example.num_weighted for example in examples)
    return Batch(
        data=tuple(scale_weights(to_datum(example), 1 / num_weighted) for example in examples),
        rows=tuple(example.number for example in examples),
        epoch=epoch,
        num_tokens=sum(len(example.tokens) - 1 for example in examples),
        num_weighted=num_weighted,
    )


def scale_weights(datum: Datum, factor: float) -> Datum:
    """Losses are sums: with weights that sum to 1 over the batch, the sum is the mean."""
    weights = (datum.inputs["weights"] * factor).astype(np.float32)
    return Datum(tokens=datum.tokens, inputs={**datum.inputs, "weights": weights})


def count_steps(num_train: int, *, batch_size: int, epochs: float | None, steps: int | None) -> int:
    if steps is not None:
        return steps
    # 0.1 * 30 / 3 is a little over 1: rounding up must not make two of it.
    return max(1, ceil(round((epochs or 1) * num_train / batch_size, 6)))


def plan(
    train: Sequence[Example], held_out: Sequence[Example], *, batch_size: int, num_steps: int
) -> Plan:
    if not train:
        raise InvalidInput("no row is left to train on: hold out fewer, or allow longer rows")
    lengths = [len(example.tokens) - 1 for example in train]
    mean_length = sum(lengths) / len(lengths)
    mean_weighted = sum(example.num_weighted for example in train) / len(train)
    return Plan(
        num_train=len(train),
        num_held_out=len(held_out),
        num_steps=num_steps,
        epochs=num_steps * batch_size / len(train),
        tokens_per_step=mean_length * batch_size,
        weighted_per_step=mean_weighted * batch_size,
        num_tokens=round(mean_length * batch_size * num_steps),
        num_held_out_tokens=sum(len(example.tokens) - 1 for example in held_out),
        longest=max(lengths) + 1,
    )
