"""What the datums of a step say of how it learns from samples: counted while they are here anyway.

Of a step of a reinforcement learning loop, whichever program runs it: which datums have no
advantage at all, and whether long or repetitive answers are those that are rewarded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from training.requests import LOSS_INPUTS
from training.types import Datum, ForwardBackward

ZERO_SHARE_KEY = "advantages/zero_share"
LENGTH_CORRELATION_KEY = "advantages/length_correlation"
REPEATED_KEY = "advantages/repeated_share"
LENGTH_KEY = "advantages/length_mean"

GRAM = 4
PRIME = np.uint64(1_000_000_007)  # beyond every vocabulary
FEWEST = 8  # datums, for a correlation
LONGEST = 20_000  # tokens of one answer that are looked at


@dataclass(slots=True)
class Signal:
    """Sums over the datums of one step."""

    num_datums: int = 0
    num_zero: int = 0
    advantages: list[float] = field(default_factory=list)  # of each datum that has one, the mean
    lengths: list[int] = field(default_factory=list)  # tokens with an advantage
    repeated: list[float] = field(default_factory=list)  # of the rewarded: share of its 4-grams

    def count(self, request: ForwardBackward) -> None:
        if "advantages" not in LOSS_INPUTS[request.loss_fn].required:
            return
        for datum in request.data:
            self.add(datum)

    def add(self, datum: Datum) -> None:
        advantages = datum.inputs["advantages"].ravel()
        on = advantages != 0
        length = int(on.sum())
        self.num_datums += 1
        self.num_zero += length == 0
        if length == 0:
            return
        mean = float(advantages[on].mean(dtype=np.float64))  # odd programs send 1e38 and more
        self.advantages.append(mean)
        self.lengths.append(length)
        if mean > 0:
            self.repeated.append(measure_repeated(datum.inputs["target_tokens"].ravel()[on]))

    def describe(self) -> Mapping[str, float]:
        if not self.num_datums:
            return {}
        numbers = {ZERO_SHARE_KEY: self.num_zero / self.num_datums}
        if self.lengths:
            numbers[LENGTH_KEY] = float(np.mean(self.lengths))
        if self.repeated:
            numbers[REPEATED_KEY] = float(np.mean(self.repeated))
        correlation = correlate(self.lengths, self.advantages)
        if correlation is not None:
            numbers[LENGTH_CORRELATION_KEY] = correlation
        return numbers


def measure_repeated(tokens: NDArray[np.int64]) -> float:
    """Which share of its 4-grams was there before in it. 0: all are new, or it is too short."""
    tokens = tokens[:LONGEST]
    if len(tokens) <= GRAM:
        return 0.0
    number = len(tokens) - GRAM + 1
    grams = np.zeros(number, np.uint64)  # each as one number: sorting those is ten times as fast
    with np.errstate(over="ignore"):
        for place in range(GRAM):
            grams = grams * PRIME + tokens[place : place + number].astype(np.uint64)
    return 1.0 - len(np.unique(grams)) / number


def correlate(lengths: list[int], advantages: list[float]) -> float | None:
    """Of Pearson. None: too few, or one of them does not vary."""
    if len(lengths) < FEWEST or np.ptp(lengths) == 0 or np.ptp(advantages) < 1e-9:
        return None
    found = float(np.corrcoef(lengths, advantages)[0, 1])
    return found if np.isfinite(found) else None
