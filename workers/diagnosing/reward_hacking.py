"""Rewards that are earned without the work: by length, repetition, format or unreadable text."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from webapp.runs.models import Run
from webapp.runs.thresholds import DEFAULTS, Limits
from workers.diagnosing import token_hacking
from workers.diagnosing.thresholds import (
    ANSWERS,
    ANSWERS_KEPT,
    ANSWERS_SHOWN,
    CORRECT_LOW,
    FORMAT_HIGH,
    LENGTH_GROWTH,
    REWARDED,
    UNREADABLE_SHARE,
)
from workers.diagnosing.verdict import NOTHING, Verdict, clear, found, waiting

GRAM = 4  # words
SHOWN_CHARACTERS = 160
FORMAT_WORDS = ("format", "regex", "schema", "json")
UNREADABLE = frozenset({"Cc", "Cn", "Co", "Cs"})  # controls, unassigned, private, halves
READABLE_CONTROLS = "\n\r\t"
ADVICE = "Read the answers that show it, and change the reward so that they earn nothing."


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    step: int
    group: int
    index: int
    text: str
    reward: float
    rewards: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """One way of it that was seen, and the answers that show it."""

    text: str
    answers: Sequence[Answer]


def look(run: Run, _memory: Mapping[str, Any] = NOTHING, limits: Limits = DEFAULTS) -> Verdict:
    """Of a recipe the texts are here; of a client's loop only the tokens that it learned from."""
    if not run.rollouts.exists():
        return token_hacking.look(run, limits)
    columns = ("step", "group", "index", "completion", "reward", "rewards")
    rows = run.rollouts.order_by("-step", "group", "index").values_list(*columns)
    newest = [
        Answer(step=step, group=group, index=index, text=text, reward=reward, rewards=rewards)
        for step, group, index, text, reward, rewards in rows[:ANSWERS_KEPT]
    ]
    ordered = sorted(newest, key=lambda each: (each.step, each.group, each.index))
    return judge(ordered, limits)


def judge(answers: Sequence[Answer], limits: Limits = DEFAULTS) -> Verdict:
    if len(answers) < ANSWERS:
        return waiting(f"It takes {ANSWERS} answers; there are {len(answers)}.")
    rewarded = find_rewarded(answers)
    checks = (
        see_length(answers, limits),
        see_repeats(rewarded, limits),
        see_unreadable(rewarded, limits),
        see_format(answers),
    )
    signs = [sign for sign in checks if sign is not None]
    if not signs:
        return clear(f"Nothing of the kind in the last {len(answers)} answers.")
    shown = [answer for sign in signs for answer in sign.answers][:ANSWERS_SHOWN]
    text = " ".join([*(sign.text for sign in signs), ADVICE])
    facts = {"answers": [describe(answer) for answer in shown]}
    return found(text, step=min(answer.step for answer in shown), facts=facts)


def describe(answer: Answer) -> dict[str, Any]:
    return {
        "step": answer.step,
        "group": answer.group,
        "index": answer.index,
        "reward": round(answer.reward, 4),
        "text": answer.text[:SHOWN_CHARACTERS],
    }


def find_rewarded(answers: Sequence[Answer]) -> list[Answer]:
    highest = max(answer.reward for answer in answers)
    return [each for each in answers if each.reward > 0 and each.reward >= REWARDED * highest]


def see_length(answers: Sequence[Answer], limits: Limits) -> Sign | None:
    lengths = np.array([len(answer.text) for answer in answers], float)
    rewards = np.array([answer.reward for answer in answers], float)
    if np.ptp(lengths) == 0 or np.ptp(rewards) == 0:
        return None
    correlation = float(np.corrcoef(lengths, rewards)[0, 1])
    half = len(answers) // 2
    growth = lengths[half:].mean() / max(lengths[:half].mean(), 1.0)
    if correlation < limits.length_correlation or growth < LENGTH_GROWTH:
        return None
    text = (
        f"Longer answers earn more (correlation {correlation:.2f}; the limit is"
        f" {limits.length_correlation:g}), and answers grew {growth:.1f} times as long."
    )
    return Sign(text=text, answers=sorted(answers, key=lambda each: -len(each.text))[:2])


def see_repeats(rewarded: Sequence[Answer], limits: Limits) -> Sign | None:
    least = limits.repeated_share
    shown = [each for each in rewarded if measure_repeated(each.text) >= least]
    said = f"of the rewarded answers repeat the same phrases in {least:.0%} of their text or more"
    return show(shown, rewarded, said, limits)


def measure_repeated(text: str) -> float:
    """Which share of its phrases of 4 words was there before in it."""
    words = text.split()
    grams = [tuple(words[at : at + GRAM]) for at in range(len(words) - GRAM + 1)]
    return 1.0 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def see_unreadable(rewarded: Sequence[Answer], limits: Limits) -> Sign | None:
    shown = [each for each in rewarded if measure_unreadable(each.text) >= UNREADABLE_SHARE]
    said = "of the rewarded answers hold characters that nobody can read"
    return show(shown, rewarded, said, limits)


def measure_unreadable(text: str) -> float:
    bad = sum(1 for character in text if is_unreadable(character))
    return bad / len(text) if text else 0.0


def is_unreadable(character: str) -> bool:
    if character in READABLE_CONTROLS:
        return False
    return character == "\ufffd" or unicodedata.category(character) in UNREADABLE


def show(
    shown: Sequence[Answer], rewarded: Sequence[Answer], said: str, limits: Limits
) -> Sign | None:
    share = len(shown) / len(rewarded) if rewarded else 0.0
    if share < limits.hacked_share:
        return None
    text = f"{share:.0%} {said}; the limit is {limits.hacked_share:.0%}."
    return Sign(text=text, answers=shown[-2:])


def see_format(answers: Sequence[Answer]) -> Sign | None:
    """The graders that look at form pay, and those that look at the answer do not."""
    names = {name for answer in answers for name in answer.rewards}
    formal = {name for name in names if any(word in name.lower() for word in FORMAT_WORDS)}
    if not formal or formal == names:
        return None
    form = max(average(answers, name) for name in formal)
    right = max(average(answers, name) for name in names - formal)
    if form < FORMAT_HIGH or right > CORRECT_LOW:
        return None
    text = f"The format alone is rewarded: it earns {form:.2f}, and being right earns {right:.2f}."
    return Sign(text=text, answers=answers[-2:])


def average(answers: Sequence[Answer], name: str) -> float:
    return sum(answer.rewards.get(name, 0.0) for answer in answers) / len(answers)
