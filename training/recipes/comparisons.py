"""Comparisons: a model is asked which of two answers is better, and says A or B.

A reward model is trained on them, and reinforcement learning asks it for its rewards.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.data.examples import encode_row
from training.data.rows import Row
from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput
from training.types import SampleOutput, SampleRequest, SamplingParams

LABELS = ("A", "B")
QUESTION = "Which answer is better, A or B?"

Message = Mapping[str, Any]


def build_messages(
    prompt: Sequence[Message], first: Sequence[Message], second: Sequence[Message]
) -> list[dict[str, Any]]:
    """One message of a user's, whatever the conversation was: every chat template takes it."""
    parts = (write_turns(prompt), f"A: {write_turns(first)}", f"B: {write_turns(second)}", QUESTION)
    return [{"role": "user", "content": "\n\n".join(parts)}]


def write_turns(messages: Sequence[Message]) -> str:
    """A single message as it is; of several it is told who speaks."""
    if len(messages) == 1:
        return write_content(messages[0])
    return "\n".join(f"{message['role']}: {write_content(message)}" for message in messages)


def write_content(message: Message) -> str:
    """Tool calls are part of what was answered."""
    content = message.get("content")
    called = message.get("tool_calls")
    return f"{content or ''}{called or ''}" if called else str(content or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A comparison as the model is asked: the tokens up to its answer, and those of both labels."""

    tokens: tuple[int, ...]
    labels: tuple[int, int]

    def make_requests(self) -> tuple[SampleRequest, SampleRequest]:
        """Each asks how likely one label is; `read_preference` takes both answers."""
        first, second = (self._request(label) for label in self.labels)
        return first, second

    def _request(self, label: int) -> SampleRequest:
        return SampleRequest(
            prompt=[*self.tokens, label],
            params=SamplingParams(max_tokens=1, temperature=0.0),
            prompt_logprobs=True,
            prompt_logprobs_last_n=1,
        )


def encode_question(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> Question:
    sides = [encode_label(tokenizer, messages, label) for label in LABELS]
    (before, first), (_, second) = sides
    if first == second:
        raise InvalidInput("the model's tokenizer begins A and B with the same token")
    return Question(tokens=tuple(before), labels=(first, second))


def encode_label(
    tokenizer: ChatTokenizer, messages: Sequence[Message], label: str
) -> tuple[list[int], int]:
    """The tokens before the model's answer, and the first of the answer's own."""
    answered = [*messages, {"role": "assistant", "content": label}]
    example = encode_row(Row(number=1, messages=answered), tokenizer)
    place = int(example.mask.argmax())
    return example.tokens[:place].tolist(), int(example.tokens[place])


def read_preference(first: SampleOutput, second: SampleOutput) -> float:
    """The probability that A is better, of the answers to both requests of a question."""
    return compare(read_last(first), read_last(second))


def compare(first: float, second: float) -> float:
    """From the log-probabilities of A and B: what else the model may say does not count."""
    return 1 / (1 + math.exp(min(700.0, second - first)))


def read_last(output: SampleOutput) -> float:
    logprobs = output.prompt_logprobs
    if not logprobs or logprobs[-1] is None:
        raise InvalidInput("the reward model's server told no log-probability of its answer")
    return logprobs[-1]
