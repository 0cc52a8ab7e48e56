"""What reinforcement learning learns from: prompts, sampled answers, and what those earned."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.types import Datum, SampledSequence

MOST_NATS = 50.0  # of a weight's logarithm: what was drawn is never so unlikely


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A row of the dataset, ready to be asked."""

    number: int
    key: bytes
    prompt_key: bytes
    messages: Sequence[Mapping[str, Any]]
    tokens: Sequence[int]
    target: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Rollout:
    """One answer. `scores` are by grader, `reward` is their weighted sum.

    `logprobs` are of the distribution that was drawn from, which is what learns. The reference
    knows no temperature, so `own`, the model's at temperature 1, are what it is compared with.
    """

    prompt: Sequence[int]  # the tokens that it answers
    tokens: Sequence[int]
    logprobs: Sequence[float]
    text: str
    is_truncated: bool
    messages: Sequence[Mapping[str, Any]] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    reward: float = 0.0
    advantage: float = 0.0
    own: Sequence[float | None] | None = None  # None: they are `logprobs`
    reference: Sequence[float] | None = None  # by the model that it is not to leave

    @classmethod
    def of(cls, prompt: Prompt, sequence: SampledSequence, text: str) -> "Rollout":
        return cls(
            prompt=prompt.tokens,
            tokens=sequence.tokens,
            logprobs=sequence.logprobs,
            own=sequence.raw_logprobs,
            text=text,
            is_truncated=sequence.stop_reason == "length",
            messages=prompt.messages,
        )

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.tokens)


@dataclass(slots=True, kw_only=True)
class Group:
    """Answers that are compared with each other. `row`: of the dataset, where they come from one.

    `born`: after how many optimizer steps the weights that answered were saved.
    """

    rollouts: list[Rollout]
    row: int | None = None
    born: int = 0
    is_dropped: bool = False

    @property
    def is_constant(self) -> bool:
        """All answers are worth the same: there is nothing to prefer."""
        rewards = [rollout.reward for rollout in self.rollouts]
        return max(rewards) - min(rewards) < 1e-12


def set_advantages(group: Group, *, by_std: bool) -> None:
    """A reward against the mean of its group; by its standard deviation as GRPO has it."""
    rewards = np.array([rollout.reward for rollout in group.rollouts])
    advantages = rewards - rewards.mean()
    if by_std:
        advantages = advantages / (rewards.std() + 1e-6)
    for rollout, advantage in zip(group.rollouts, advantages.tolist(), strict=True):
        rollout.advantage = 0.0 if group.is_constant else advantage


def spread_advantages(rollouts: Sequence[Rollout], *, kl_coefficient: float) -> list[list[float]]:
    """Of each answer's tokens. With a coefficient, a token that the reference finds less likely
    than most tokens of the batch, compared with the policy, loses by it.

    The mean over the batch is taken off, so that the penalty says which tokens and not how many.
    """
    whole = [[rollout.advantage] * len(rollout.tokens) for rollout in rollouts]
    if not kl_coefficient:
        return whole
    gaps = [find_gaps(rollout) for rollout in rollouts]
    mean = mean_of(gaps)
    return [
        [advantage + kl_coefficient * (mean - gap) for advantage, gap in zip(*each, strict=True)]
        for each in zip(whole, gaps, strict=True)
    ]


def find_gaps(rollout: Rollout) -> list[float]:
    """By how much the policy finds each token likelier than the reference does, in nats."""
    if rollout.reference is None:
        return [0.0] * len(rollout.tokens)
    own = rollout.own or rollout.logprobs
    pairs = zip(own, rollout.reference, strict=True)
    return [0.0 if each is None else each - other for each, other in pairs]


def find_weights(rollout: Rollout) -> list[float]:
    """How much likelier each token was to the model at temperature 1 than to what drew it."""
    if rollout.own is None:
        return [1.0] * len(rollout.tokens)
    pairs = zip(rollout.own, rollout.logprobs, strict=True)
    return [
        0.0 if each is None else math.exp(min(each - drawn, MOST_NATS)) for each, drawn in pairs
    ]


def mean_of(lists: Sequence[Sequence[float]]) -> float:
    """Over all numbers of all lists; 0 where there is none."""
    num = sum(len(each) for each in lists)
    return sum(sum(each) for each in lists) / num if num else 0.0


def make_datum(rollout: Rollout, advantages: Sequence[float], *, scale: float) -> Datum:
    """The prompt has no advantage and so no gradient. `scale` makes means of the loss's sums."""
    tokens = np.array([*rollout.prompt, *rollout.tokens], np.int64)
    before = len(rollout.prompt) - 1
    inputs: dict[str, NDArray[Any]] = {
        "target_tokens": tokens[1:],
        "logprobs": np.array([0.0] * before + list(rollout.logprobs), np.float32),
        "advantages": np.array(
            [0.0] * before + [scale * advantage for advantage in advantages], np.float32
        ),
    }
    return Datum(tokens=tokens[:-1], inputs=inputs)


def add_ratio_mask(datum: Datum, num_sampled: int) -> Datum:
    """For losses that look at the ratio of a whole answer."""
    mask = np.zeros(len(datum.tokens), np.float32)
    mask[len(mask) - num_sampled :] = 1.0
    return Datum(tokens=datum.tokens, inputs={**datum.inputs, "sequence_ratio_mask": mask})
