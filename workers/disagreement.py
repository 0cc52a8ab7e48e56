"""How far the log-probabilities that samples came with are from the learner's.

Measured when a datum is first learned from, with numbers that are there anyway: later passes over
it are made with weights that it has changed.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from training.requests import LOGPROBS, LOSS_INPUTS
from training.types import Datum, ForwardBackward, ForwardBackwardOutput

MOST_SEEN = 100_000  # datums of one run that are known again; a restart forgets them

DIFFERENCE = "sampler/logprob_difference_mean"
KL = "sampler/kl"


@dataclass(slots=True)
class Seen:
    """Datums that were learned from, by what they hold."""

    keys: dict[bytes, None] = field(default_factory=dict)  # the oldest first

    def note(self, datum: Datum) -> bool:
        """False: it was here before."""
        digest = hashlib.blake2b(datum.tokens.tobytes(), digest_size=16)
        digest.update(datum.inputs["logprobs"].tobytes())
        key = digest.digest()
        if key in self.keys:
            return False
        self.keys[key] = None
        if len(self.keys) > MOST_SEEN:
            del self.keys[next(iter(self.keys))]
        return True


@dataclass(slots=True)
class Disagreement:
    """Sums over the sampled tokens of one step."""

    num_tokens: int = 0
    difference: float = 0.0
    kl: float = 0.0

    def count(self, request: ForwardBackward, output: ForwardBackwardOutput, seen: Seen) -> None:
        if "logprobs" not in LOSS_INPUTS[request.loss_fn].required:
            return
        knows_all = request.config.get(LOGPROBS) != "weighted"
        for datum, learner in zip(request.data, output.logprobs, strict=True):
            if seen.note(datum):
                on = find_sampled(datum, knows_all=knows_all)
                self.add(learner.ravel()[on], datum.inputs["logprobs"].ravel()[on])

    def add(self, learner: NDArray[np.float32], sampler: NDArray[np.float32]) -> None:
        """The estimate of the divergence of the learner from the sampler is k3 of J. Schulman,
        "Approximating KL Divergence" (2020): unbiased, never negative, and of low variance."""
        log_ratio = learner.astype(np.float64) - sampler
        self.num_tokens += len(log_ratio)
        self.difference += float(np.abs(log_ratio).sum())
        with np.errstate(over="ignore"):
            self.kl += float((np.expm1(log_ratio) - log_ratio).sum())

    def describe(self) -> Mapping[str, float]:
        """What is not finite is no point of a curve."""
        if not self.num_tokens:
            return {}
        means = {DIFFERENCE: self.difference / self.num_tokens, KL: self.kl / self.num_tokens}
        return {key: mean for key, mean in means.items() if np.isfinite(mean)}


def find_sampled(datum: Datum, *, knows_all: bool) -> NDArray[np.bool_]:
    """Where a target was drawn: as the datum tells, or else where it has an advantage, as prompts
    have none. The learner's numbers elsewhere may have been left out."""
    has_advantage = datum.inputs["advantages"].ravel() != 0
    if datum.sampled is None or not knows_all:
        return np.asarray(has_advantage)
    return np.asarray(datum.sampled.ravel())
