"""Rows of reasoning-gym's tasks, made by seed, and their scorers. Runs in the sandbox.

Nine of its scorers evaluate what they are given: only a list, or an expression of known names,
reaches them. Five tasks have no answers, and one takes any text for right: they are left out.
"""

import ast
import json
from collections.abc import Mapping
from functools import lru_cache
from tokenize import TokenError
from typing import Any

import reasoning_gym
import regex  # type: ignore[import-untyped]
from reasoning_gym.factory import DATASETS

from training.errors import InvalidInput
from training.recipes.graders import READS_EXPRESSIONS, READS_LISTS
from training.recipes.grading import find_last_number

EXCLUDED = {
    "boxnet": "it has no answers",
    "graph_color": "it has no answers",
    "propositional_logic": "it has no answers",
    "rubiks_cube": "it has no answers",
    "rush_hour": "it has no answers",
    "game_of_life_halting": "its scorer takes any text for right",
    "arc_agi": "its scorer compares what JSON does not keep",
    "rearc": "its scorer compares what JSON does not keep",
    "composite": "it is a mixture of the others",
}
FUNCTIONS = {"sin", "cos", "tan", "exp", "log", "ln", "sqrt", "pi", "E", "asin", "acos", "atan"}
EXPRESSION = regex.compile(r"[0-9a-zA-Z+\-*/^(). \n]{1,500}")
ATTRIBUTE = regex.compile(r"\.\s*[a-zA-Z_]|[a-zA-Z_)]\s*\.")
MAX_POWER = 64
# How a scorer says that it cannot read an answer: it does not like it. One that finds no memory
# says nothing of the answer.
STUMBLES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NameError),
    *(RuntimeError, SyntaxError, TypeError, ValueError, TokenError),
)
GARBAGE = "?"  # what it scores is what a scorer gives for nothing
TAGGED = regex.compile(r"<answer>(.*?)(?:</answer>|\Z)", regex.S)
INSTRUCTION = "Give only the final answer between <answer> and </answer>."


def list_tasks() -> list[str]:
    return sorted(set(DATASETS) - set(EXCLUDED))


def make_rows(
    task: str, *, seed: int, size: int, config: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The same rows for the same seed. `entry` is what the scorer reads."""
    rows = []
    dataset = make_task(task, json.dumps({**config, "seed": seed, "size": size}, sort_keys=True))
    for number in range(size):
        entry = json.loads(json.dumps(dataset[number], default=str))
        rows.append(
            {
                "prompt": f"{entry['question'].rstrip()}\n\n{INSTRUCTION}",
                "target": str(entry["answer"]),
                "task": task,
                "entry": entry,
            }
        )
    return rows


@lru_cache(maxsize=128)
def make_task(task: str, config: str) -> Any:
    if task not in DATASETS:
        raise InvalidInput(f"there is no reasoning-gym task {task!r:.60}")
    if task in EXCLUDED:
        raise InvalidInput(f"the reasoning-gym task {task} cannot be used: {EXCLUDED[task]}")
    try:
        return reasoning_gym.create_dataset(task, **json.loads(config))
    except (TypeError, ValueError, AssertionError) as error:
        raise InvalidInput(
            f"the reasoning-gym task {task} refuses its settings: {error}"
        ) from error


def score_task(task: str, completion: str, entry: Any) -> float:
    """From 0 to 1; what the scorer gives to a text that says nothing is taken off."""
    entry = json.loads(entry) if isinstance(entry, str) else entry
    if not isinstance(entry, Mapping) or not {"question", "answer", "metadata"} <= entry.keys():
        raise InvalidInput("the row's entry has no question, answer and metadata")
    scorer = make_task(task, "{}")
    answer = find_answer(completion, str(entry["answer"]))
    if not is_harmless(task, answer):
        return 0.0
    floor, score = score_entry(scorer, GARBAGE, entry), score_entry(scorer, answer, entry)
    return max(0.0, (score - floor) / (1 - floor)) if floor < 1 else 0.0


def score_entry(scorer: Any, answer: str, entry: Mapping[str, Any]) -> float:
    try:
        return min(1.0, max(0.0, float(scorer.score_answer(answer, entry))))
    except STUMBLES:
        return 0.0


def find_answer(completion: str, wanted: str) -> str:
    """Between the tags, or else the last number where a number is wanted, or else all of it."""
    if tagged := TAGGED.findall(completion):
        return str(tagged[-1]).strip()
    is_number = find_last_number(wanted) is not None and wanted.strip().lstrip("-").isdigit()
    found = find_last_number(completion) if is_number else None
    if found is None:
        return completion.strip()
    return str(int(found)) if found.is_integer() and abs(found) < 1e15 else str(found)


def is_harmless(task: str, answer: str) -> bool:
    if task in READS_LISTS:
        return is_literal(answer) or "(" not in answer
    if task in READS_EXPRESSIONS:
        return is_expression(answer)
    return True


def is_literal(answer: str) -> bool:
    try:
        ast.literal_eval(answer.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return False
    return True


def is_expression(answer: str) -> bool:
    """Numbers, operators, single letters and functions by name; no attributes, no huge powers."""
    if not EXPRESSION.fullmatch(answer) or ATTRIBUTE.search(answer):
        return False
    words = regex.findall(r"[a-zA-Z]+", answer)
    powers = regex.findall(r"(?:\*\*|\^)\s*\(?\s*-?(\d+)", answer)
    stacked = regex.search(r"(?:\*\*|\^)[^+\-]*(?:\*\*|\^)", answer)
    return (
        all(len(word) == 1 or word in FUNCTIONS for word in words)
        and all(int(power) <= MAX_POWER for power in powers)
        and not stacked
    )
