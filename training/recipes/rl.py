"""Reinforcement learning with verifiable rewards: groups of answers to prompts, graded."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from training.data.batches import Epochs, draw
from training.data.rows import Row
from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput
from training.model import Sampler
from training.recipes.policy import Collect
from training.recipes.rl_config import PolicyConfig
from training.recipes.rollouts import Group, Prompt, Rollout
from training.types import SampledSequence, SampleRequest, SamplingParams

Scores = list[dict[str, float]]
# What each answer of each group is worth, by grader. A group is graded as a whole: some rewards
# compare its answers with each other.
Reward = Callable[[int, Sequence[tuple[Prompt, Group]]], list[Scores]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A dataset's prompts made ready for one config."""

    train: Sequence[Prompt]
    held_out: Sequence[Prompt]
    num_batches: int
    dropped: Sequence[int]  # row numbers: their prompts and an answer do not fit


def prepare(rows: Iterable[Row], tokenizer: ChatTokenizer, config: PolicyConfig) -> Prepared:
    limits = [limit for limit in (config.max_length, tokenizer.max_length) if limit is not None]
    most = min(limits, default=2**31) - config.max_tokens - 1  # the reference says one token more
    prompts, dropped = [], []
    for row in rows:
        prompt = make_prompt(row, tokenizer)
        if len(prompt.tokens) > most:
            dropped.append(row.number)
        else:
            prompts.append(prompt)
    train, held_out = config.split(prompts)
    if not train:
        raise InvalidInput(
            f"no prompt is left to learn from: {len(held_out)} are held out, and {len(dropped)}"
            f" leave no room for an answer of {config.max_tokens} tokens"
        )
    return Prepared(
        train=train,
        held_out=held_out,
        num_batches=config.count_batches(len(train)),
        dropped=dropped,
    )


def make_prompt(row: Row, tokenizer: ChatTokenizer) -> Prompt:
    """A conversation that ends with an answer has it as its target."""
    messages = list(row.messages)
    target = row.metadata.get("target")
    if messages and messages[-1]["role"] == "assistant":
        answer = messages.pop()["content"]
        target = answer if target is None else target
    if not messages:
        raise InvalidInput(f"row {row.number} has no message to answer: it is no prompt")
    tools = row.metadata.get("tools")
    text = tokenizer.apply_template(
        messages, add_generation_prompt=True, tools=tools if isinstance(tools, list) else None
    )
    return Prompt(
        number=row.number,
        key=row.key,
        prompt_key=row.prompt_key,
        messages=messages,
        tokens=tokenizer.encode(text),
        target=target if isinstance(target, str) else "" if target is None else str(target),
        metadata=row.metadata,
    )


@dataclass(slots=True, kw_only=True)
class Questions:
    """Asks each prompt of a batch for a group of answers, and grades them."""

    prepared: Prepared
    config: PolicyConfig
    tokenizer: ChatTokenizer
    reward: Reward
    weights: Mapping[str, float]  # of each grader in the reward
    epochs: Epochs[Prompt] = field(init=False)

    def __post_init__(self) -> None:
        self.epochs = Epochs(items=self.prepared.train, seed=self.config.seed)

    def choose_batch(self, number: int) -> list[Prompt]:
        """From 1; nothing but the config and the rows decides."""
        size = self.config.batch_size
        return self.epochs.take((number - 1) * size, size)

    def ask(self, number: int, step: int, sampler: Sampler) -> Collect:
        prompts = self.choose_batch(number)
        waiting = [
            sampler.sample(
                self.make_request(prompt, step, place, num_samples=self.config.group_size),
                about={"step": step, "group": place},
            )
            for place, prompt in enumerate(prompts)
        ]

        def collect() -> list[Group]:
            outputs = [future.result() for future in waiting]
            groups = [
                make_group(prompt, output.sequences, self.tokenizer)
                for prompt, output in zip(prompts, outputs, strict=True)
            ]
            self.grade(step, prompts, groups)
            return groups

        return collect

    def ask_held_out(
        self, prompts: Sequence[Prompt], sampler: Sampler, about: Mapping[str, Any]
    ) -> list[Sequence[SampledSequence]]:
        """Each is answered once, as rollouts are."""
        waiting = [
            sampler.sample(
                self.make_request(prompt, 0, place, num_samples=1),
                about={**about, "held_out": place},
            )
            for place, prompt in enumerate(prompts)
        ]
        return [future.result().sequences for future in waiting]

    def make_request(
        self, prompt: Prompt, step: int, place: int, *, num_samples: int
    ) -> SampleRequest:
        """Another seed at each step and place: the same prompt is not answered the same."""
        key = f"{step}/{place}".encode()
        return SampleRequest(
            prompt=prompt.tokens,
            num_samples=num_samples,
            params=SamplingParams(
                max_tokens=self.config.max_tokens,
                temperature=self.config.temperature,
                seed=draw(key, seed=self.config.seed, purpose="rollout") % 2**31,
            ),
            # The reference knows no temperature: what is compared with it must not either.
            with_both_logprobs=self.config.temperature != 1.0,
        )

    def grade(self, step: int, prompts: Sequence[Prompt], groups: Sequence[Group]) -> None:
        scored = self.reward(step, list(zip(prompts, groups, strict=True)))
        for group, scores in zip(groups, scored, strict=True):
            for rollout, earned in zip(group.rollouts, scores, strict=True):
                rollout.scores = earned
                rollout.reward = sum(self.weights[name] * score for name, score in earned.items())
                assert isfinite(rollout.reward)  # graders give 0 to 1, and weights are checked


def make_group(
    prompt: Prompt, sequences: Sequence[SampledSequence], tokenizer: ChatTokenizer
) -> Group:
    rollouts = [
        Rollout.of(prompt, sequence, tokenizer.decode(sequence.tokens, skip_special=True))
        for sequence in sequences
    ]
    return Group(rollouts=rollouts, row=prompt.number)
