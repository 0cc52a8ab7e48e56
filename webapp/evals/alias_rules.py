"""What an alias asks of a checkpoint before it names that: a paired test, as a sentence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from webapp.core.errors import UserError
from webapp.evals.answers import name_graders
from webapp.evals.comparison import Comparison, compare
from webapp.evals.models import EvalSuite, Evaluation
from webapp.evals.naming import name_subject

BETTER, NOT_WORSE = "better", "not_worse"
TESTS = (BETTER, NOT_WORSE)
LEVEL = 0.95
LEVELS = (0.5, 0.9999)  # from, to
MOST_MARGIN = 100.0  # points
MOST_LEFT_OUT = 0.1  # of a suite's items: what is decided from fewer is not about the suite


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`statistics` is kept with the move."""

    has_passed: bool
    text: str
    statistics: Mapping[str, Any]


def check_rule(
    suite: EvalSuite, *, grader: str, test: str, margin: float, level: float
) -> dict[str, Any]:
    names = name_graders(suite)
    if not names:
        raise UserError(f"Nothing grades {suite.name}: choose another suite.", field="suite")
    if grader and grader not in names:
        raise UserError(
            f"The suite has no grader {grader!r:.60}: it has {', '.join(names)}.", field="grader"
        )
    if test not in TESTS:
        raise UserError(f"test is {test!r:.40}; it is one of {', '.join(TESTS)}.", field="test")
    if not 0 <= margin <= MOST_MARGIN:
        raise UserError(
            f"margin is {margin:g}; it lies between 0 and {MOST_MARGIN:g} points.", field="margin"
        )
    if not LEVELS[0] <= level <= LEVELS[1]:
        raise UserError(
            f"level is {level:g}; it lies between {LEVELS[0]} and {LEVELS[1]}.", field="level"
        )
    return {"grader": grader or names[0], "test": test, "margin": margin, "level": level}


def describe_rule(suite: EvalSuite | None, rule: Mapping[str, Any]) -> str:
    """What somebody who asks for a move has to know."""
    if suite is None:
        return "It moves freely: no test stands before it."
    level, grader = f"{100 * rule['level']:g} %", rule["grader"].replace("_", " ")
    if rule["test"] == BETTER:
        return (
            f"It moves to a checkpoint that is better on {suite.name} by {grader}: a paired test"
            f" at {level} has to say so."
        )
    return (
        f"It moves to a checkpoint that is not worse on {suite.name} by {grader}: the {level}"
        f" interval of the paired difference has to lie above -{rule['margin']:g} points."
    )


def decide(previous: Evaluation, candidate: Evaluation, rule: Mapping[str, Any]) -> Decision:
    """May raise `UserError` where the two cannot be compared."""
    found = compare(previous, candidate, grader=rule["grader"], level=rule["level"])
    if not found.is_paired:
        raise UserError(found.judges.text)
    has_passed, reason = _judge(found, rule)
    opening = (
        f"{name_subject(candidate)} against {name_subject(previous)}: better on {found.wins}, worse"
        f" on {found.losses} of {len(found.samples)} ({found.figures})."
    )
    statistics = dict(rule) | {
        "wins": found.wins,
        "losses": found.losses,
        "ties": found.ties,
        "left_out": found.num_left_out,
        "first_mean": found.first_mean,
        "second_mean": found.second_mean,
        "difference": found.difference,
        "interval": [found.low, found.high],
        "p_value": found.p_value,
    }
    return Decision(has_passed=has_passed, text=f"{opening} {reason}", statistics=statistics)


def _judge(found: Comparison, rule: Mapping[str, Any]) -> tuple[bool, str]:
    level, num_items = f"{100 * rule['level']:g} %", found.first.suite.num_items
    if found.num_left_out > MOST_LEFT_OUT * num_items:
        return False, (
            f"Too few items can be compared: {found.num_left_out} of {num_items} have no graded"
            " answer from one of the two."
        )
    if rule["test"] == BETTER:
        if found.difference > 0 and found.p_value < 1 - rule["level"]:
            return True, f"That is better at {level}."
        return False, f"That is not better at {level}: the test asks for it."
    edge = f"The {level} interval begins at {found.low:+.1f} points"
    if found.low > -rule["margin"]:
        return True, f"{edge}, above the margin of -{rule['margin']:g}."
    return False, f"{edge}, not above the margin of -{rule['margin']:g}."
