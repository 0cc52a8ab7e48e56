"""Distillation by answers: a teacher answers the prompts, and the student is fine-tuned on that.

With a prompt that the teacher alone sees this is prompt distillation (arXiv 2112.00861, there
called context distillation).
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.data.batches import count_steps, draw
from training.data.examples import Example, encode_rows
from training.data.rows import Row
from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput
from training.model import Future, Sampler
from training.recipes.distillation_config import DistillationConfig
from training.recipes.rl import make_prompt
from training.recipes.rollouts import Group, Prompt, Rollout
from training.recipes.sft import Prepared
from training.types import SampleOutput, SampleRequest, SamplingParams

AHEAD = 64  # prompts that the teacher is asked at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """Who answers, in tokens of its own."""

    sampler: Sampler
    tokenizer: ChatTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What the teacher said to one prompt; `asked` is what it saw."""

    prompt: Prompt
    asked: Sequence[int]
    group: Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """A dataset's prompts: those that are learned from, and those only measured."""

    train: Sequence[Prompt]
    held_out: Sequence[Prompt]
    dropped: Sequence[int]  # row numbers: they leave no room for an answer


def read_prompts(
    rows: Iterable[Row], tokenizer: ChatTokenizer, teacher: Teacher, config: DistillationConfig
) -> Prompts:
    """Of rows that end with an answer, what comes before it."""
    lengths = (config.max_length, tokenizer.max_length, teacher.tokenizer.max_length)
    limits = [limit for limit in lengths if limit is not None]
    most = min(limits, default=2**31) - config.max_tokens - 1
    prompts: list[Prompt] = []
    dropped: list[Prompt] = []
    for row in rows:
        prompt = make_prompt(row, tokenizer)
        is_short = max(len(prompt.tokens), len(ask_teacher(prompt, teacher, config))) <= most
        (prompts if is_short else dropped).append(prompt)
    train, held_out = config.split(prompts)
    numbers = [prompt.number for prompt in dropped]
    if not train:
        raise InvalidInput(
            f"no prompt is left to learn from: {len(held_out)} are held out, and {len(dropped)}"
            f" leave no room for an answer of {config.max_tokens} tokens"
        )
    return Prompts(train=train, held_out=held_out, dropped=numbers)


def ask_teacher(prompt: Prompt, teacher: Teacher, config: DistillationConfig) -> Sequence[int]:
    """The tokens that the teacher answers: its own prompt first, in the system message."""
    text = config.teacher_prompt
    messages = add_prompt(prompt.messages, text) if text else prompt.messages
    tokenizer = teacher.tokenizer
    return tokenizer.encode(tokenizer.apply_template(messages, add_generation_prompt=True))


def add_prompt(messages: Sequence[Mapping[str, Any]], text: str) -> list[Mapping[str, Any]]:
    """Before a system message's own words, which both see; templates take one such message."""
    if messages and messages[0]["role"] == "system":
        joined = {**messages[0], "content": f"{text}\n\n{messages[0]['content']}"}
        return [joined, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def collect_lessons(
    prompts: Sequence[Prompt], teacher: Teacher, config: DistillationConfig
) -> Iterator[Lesson]:
    """In the order of the prompts. Some are asked ahead, so that the server has a full batch."""
    waiting: deque[tuple[Prompt, Sequence[int], Future[SampleOutput]]] = deque()
    for prompt in prompts:
        asked = ask_teacher(prompt, teacher, config)
        request = make_request(prompt, asked, config)
        future = teacher.sampler.sample(request, about={"lesson": prompt.number})
        waiting.append((prompt, asked, future))
        if len(waiting) == AHEAD:
            yield make_lesson(*waiting.popleft(), teacher.tokenizer)
    for each in waiting:
        yield make_lesson(*each, teacher.tokenizer)


def make_request(prompt: Prompt, asked: Sequence[int], config: DistillationConfig) -> SampleRequest:
    return SampleRequest(
        prompt=asked,
        num_samples=config.answers_per_prompt,
        params=SamplingParams(
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            seed=draw(prompt.key, seed=config.seed, purpose="lesson") % 2**31,
        ),
    )


def make_lesson(
    prompt: Prompt, asked: Sequence[int], future: Future[SampleOutput], tokenizer: ChatTokenizer
) -> Lesson:
    answers = [
        Rollout.of(prompt, sequence, tokenizer.decode(sequence.tokens, skip_special=True))
        for sequence in future.result().sequences
    ]
    return Lesson(prompt=prompt, asked=asked, group=Group(rollouts=answers, row=prompt.number))


def prepare(
    lessons: Sequence[Lesson],
    held_out: Sequence[Lesson],
    tokenizer: ChatTokenizer,
    config: DistillationConfig,
) -> Prepared:
    """Answers that were cut off or are empty teach nothing: not even where to end."""
    train = encode_lessons(lessons, tokenizer)
    if not train:
        raise InvalidInput(
            f"none of the teacher's answers to {len(lessons)} prompts came to its end within"
            f" {config.max_tokens} tokens: raise max_tokens, or take another teacher"
        )
    cut = [lesson.prompt.number for lesson in lessons if not list_whole(lesson)]
    return Prepared(
        train=train,
        held_out=encode_lessons(held_out, tokenizer),
        num_steps=count_steps(
            len(train), batch_size=config.batch_size, epochs=config.epochs, steps=config.steps
        ),
        truncated=[],
        dropped=cut,
    )


def encode_lessons(lessons: Sequence[Lesson], tokenizer: ChatTokenizer) -> list[Example]:
    rows = [
        Row(number=lesson.prompt.number, messages=add_answer(lesson.prompt, answer))
        for lesson in lessons
        for answer in list_whole(lesson)
    ]
    longest = tokenizer.max_length or 2**31
    return encode_rows(rows, tokenizer, max_length=longest, overlong="drop").examples


def list_whole(lesson: Lesson) -> list[Rollout]:
    return [each for each in lesson.group.rollouts if not each.is_truncated and each.text.strip()]


def add_answer(prompt: Prompt, answer: Rollout) -> list[Mapping[str, Any]]:
    return [*prompt.messages, {"role": "assistant", "content": answer.text}]


def measure_teacher(lessons: Sequence[Lesson], tokenizer: ChatTokenizer, teacher: Teacher) -> float:
    """The teacher's own mean loss over the tokens that `held_out_loss` counts: what the student's
    is above it is the divergence of the teacher from the student, where the answers were sampled
    at temperature 1. Both speak the same tokens.
    """
    waiting = []
    for lesson in lessons:
        for index, example in enumerate(encode_lessons([lesson], tokenizer)):
            start = int(np.flatnonzero(example.mask)[0])
            request = make_score_request(lesson.asked, example.tokens[start:].tolist())
            about = {"lesson": lesson.prompt.number, "scored": index}
            waiting.append((example.mask[start:], teacher.sampler.sample(request, about=about)))
    total, count = 0.0, 0
    for mask, future in waiting:
        logprobs = list(future.result().prompt_logprobs or ())[-len(mask) :]
        total -= sum(
            value or 0.0 for value, is_learned in zip(logprobs, mask, strict=True) if is_learned
        )
        count += int(mask.sum())
    return total / count


def make_score_request(asked: Sequence[int], answer: Sequence[int]) -> SampleRequest:
    return SampleRequest(
        prompt=[*asked, *answer],
        params=SamplingParams(max_tokens=1, temperature=0.0),
        prompt_logprobs=True,
        prompt_logprobs_last_n=len(answer),
    )
