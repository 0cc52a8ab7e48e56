"""A run's samples as a filmstrip: prompts as rows, steps as columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from webapp.core.counts import read_count
from webapp.core.diffs import Piece, diff_texts, spare_unlike
from webapp.runs.models import Run, Sample

STEPS_SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A sample in pieces: those that the answer before it had not got are marked."""

    sample: Sample
    pieces: Sequence[Piece]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One pinned prompt and its answer at each shown step; None: not there yet."""

    index: int
    context: Sequence[dict[str, Any]]  # the messages before the last one
    question: str
    answers: Sequence[Answer | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    steps: Sequence[int]
    strips: Sequence[Strip]
    earlier: int | None  # the newest step that is left out
    is_latest: bool


def arrange_samples(run: Run, *, until: str) -> Film:
    """The newest steps, or those up to `until`."""
    steps = run.samples.order_by("-step").values_list("step", flat=True).distinct()
    if until:
        steps = steps.filter(step__lte=read_count(until, "until"))
    newest = list(steps[: STEPS_SHOWN + 1])
    shown = sorted(newest[:STEPS_SHOWN])
    samples = run.samples.filter(step__in=shown).defer("tokens").order_by("prompt_index", "step")
    by_prompt: dict[int, dict[int, Sample]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.prompt_index, {})[sample.step] = sample
    return Film(
        steps=shown,
        strips=[make_strip(index, answers, shown) for index, answers in by_prompt.items()],
        earlier=newest[STEPS_SHOWN] if len(newest) > STEPS_SHOWN else None,
        is_latest=not until,
    )


def make_strip(index: int, answers: dict[int, Sample], steps: Sequence[int]) -> Strip:
    prompt = next(iter(answers.values())).prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return Strip(
        index=index,
        context=messages[:-1],
        question=messages[-1]["content"] if messages else "",
        answers=mark_news([answers.get(step) for step in steps]),
    )


def mark_news(samples: Sequence[Sample | None]) -> list[Answer | None]:
    answers: list[Answer | None] = []
    before: str | None = None
    for sample in samples:
        if sample is None:
            answers.append(None)
            continue
        _, pieces = diff_texts(sample.completion if before is None else before, sample.completion)
        answers.append(Answer(sample=sample, pieces=spare_unlike(pieces)))
        before = sample.completion
    return answers
