"""Evaluations of one suite against one of them, item by item: what changed, and whether it can be
chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from webapp.core.errors import UserError
from webapp.evals.answers import Answer, name_graders, read_answers
from webapp.evals.judges import SAME_JUDGES, Judges, compare_judges
from webapp.evals.models import EvalResult, Evaluation
from webapp.evals.naming import name_subject
from webapp.evals.paired import (
    LEVEL,
    adjust_holm,
    are_binary,
    compare_scores,
    estimate_interval,
)

SIGNIFICANT = 0.05
FEWEST, MOST = 2, 8  # evaluations side by side
ORDER = ("worse", "better", "same")

Answers = Mapping[int, Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedSample:
    """One item of the suite and its two answers; scores are the chosen grader's."""

    index: int
    item: Mapping[str, Any]  # messages, target, row
    before: Answer
    after: Answer

    @property
    def first(self) -> EvalResult:
        return self.before.read()

    @property
    def second(self) -> EvalResult:
        return self.after.read()

    @property
    def first_score(self) -> float:
        return self.before.score

    @property
    def second_score(self) -> float:
        return self.after.score

    @property
    def change(self) -> str:
        return name_change(self.first_score, self.second_score)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`difference`, `low` and `high` are percentage points, second minus first."""

    first: Evaluation
    second: Evaluation
    grader: str
    samples: Sequence[ComparedSample]  # what got worse first, then better, then the same
    num_left_out: int  # items that one of the two has no answer to
    first_mean: float
    second_mean: float
    wins: int
    losses: int
    difference: float
    low: float
    high: float
    p_value: float
    adjusted: float  # the p-value, by Holm over `family`
    family: int = 1  # comparisons that were made together
    judges: Judges = SAME_JUDGES

    @property
    def ties(self) -> int:
        return len(self.samples) - self.wins - self.losses

    @property
    def is_significant(self) -> bool:
        return self.is_paired and self.adjusted < SIGNIFICANT

    @property
    def is_paired(self) -> bool:
        """Else the scores were given by different judges, and no test says what comes of that."""
        return not self.judges.are_different

    @property
    def is_binary(self) -> bool:
        return are_binary(
            [sample.first_score for sample in self.samples],
            [sample.second_score for sample in self.samples],
        )

    @property
    def test(self) -> str:
        return "McNemar's exact test" if self.is_binary else "a paired permutation test"

    @property
    def flips(self) -> Sequence[ComparedSample]:
        return self.samples[: self.wins + self.losses]

    @property
    def outcome(self) -> str:
        """In a word or four, for a table."""
        if not self.is_paired:
            return "other judge"
        if not self.wins + self.losses:
            return "the same"
        if not self.is_significant:
            return "may be chance"
        return "better" if self.difference > 0 else "worse"

    @property
    def verdict(self) -> str:
        count, name = len(self.samples), name_subject(self.second)
        if not self.is_paired:
            return (
                f"{name} scored {100 * self.second_mean:.1f} % and"
                f" {name_subject(self.first)} {100 * self.first_mean:.1f} %, by different judges:"
                " that does not say which is better."
            )
        if not self.wins + self.losses:
            return f"No difference: both scored the same on all {count}."
        better = f"better on {self.wins}, worse on {self.losses}"
        if not self.is_significant:
            return (
                f"No difference can be told from these {count}: {name} is {better}"
                f" ({self.figures})."
            )
        return f"{name} is {better} of {count} ({self.figures})."

    @property
    def figures(self) -> str:
        chance = write_p_value(self.p_value)
        if self.family > 1:
            chance += f", {write_p_value(self.adjusted)} among {self.family}"
        return f"{chance}, {self.difference:+.1f} points [{self.low:.1f}, {self.high:.1f}]"


def name_change(before: float, after: float) -> str:
    if after == before:
        return "same"
    return "better" if after > before else "worse"


def write_p_value(p_value: float) -> str:
    return "p < 0.0001" if p_value < 0.0001 else f"p = {p_value:.2g}"


def compare(
    first: Evaluation, second: Evaluation, *, grader: str = "", level: float = LEVEL
) -> Comparison:
    """Paired, by the suite's first grader where none is named."""
    grader = check_comparable([first, second], grader)
    before, after = read_answers(first, grader), read_answers(second, grader)
    return compare_answers(first, second, before, after, grader=grader, level=level)


def compare_all(
    baseline: Evaluation, others: Sequence[Evaluation], *, grader: str = ""
) -> list[Comparison]:
    """Each against the baseline; p-values are adjusted for how many there are."""
    check_number([baseline, *others])
    grader = check_comparable([baseline, *others], grader)
    before = read_answers(baseline, grader)
    found = [
        compare_answers(baseline, other, before, read_answers(other, grader), grader=grader)
        for other in others
    ]
    return adjust(found)


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """What another judge scored is not tested, so it is none of those that are counted."""
    tested = [each for each in comparisons if each.is_paired]
    adjusted = iter(adjust_holm([each.p_value for each in tested]))
    return [
        replace(each, adjusted=next(adjusted), family=len(tested)) if each.is_paired else each
        for each in comparisons
    ]


def sum_up(comparisons: Sequence[Comparison]) -> str:
    """Several comparisons with one baseline, in a sentence."""
    if len(comparisons) == 1:
        return comparisons[0].verdict
    groups: dict[str, list[Comparison]] = {"better": [], "worse": [], "other judge": [], "": []}
    for each in sorted(comparisons, key=lambda each: -each.difference):
        groups[each.outcome if each.outcome in groups else ""].append(each)
    parts = [_write_group(word, group) for word, group in groups.items() if group]
    return f"Against {name_subject(comparisons[0].first)}: {'; '.join(parts)}."


def _write_group(word: str, group: Sequence[Comparison]) -> str:
    names = [name_subject(each.second) for each in group]
    figures = [f" ({each.difference:+.1f} points)" for each in group]
    if not word:
        return f"{join_words(names)} cannot be told from it"
    if word == "other judge":
        verbs = ("was", "is") if len(group) == 1 else ("were", "are")
        return f"{join_words(names)} {verbs[0]} scored by another judge and {verbs[1]} not compared"
    if len(group) == 1:
        return f"{names[0]} is {word}{figures[0]}"
    both = [f"{name}{figure}" for name, figure in zip(names, figures, strict=True)]
    return f"{join_words(both)} are {word}"


def join_words(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def compare_answers(
    first: Evaluation,
    second: Evaluation,
    before: Answers,
    after: Answers,
    *,
    grader: str,
    level: float = LEVEL,
) -> Comparison:
    samples = _pair_samples(first, before, after)
    if not samples:
        raise UserError("The two evaluations have no answered sample in common.")
    befores = tuple(sample.first_score for sample in samples)
    afters = tuple(sample.second_score for sample in samples)
    changes = [sample.change for sample in samples]
    low, high = estimate_interval(befores, afters, level=level)
    count, p_value = len(samples), compare_scores(befores, afters)
    return Comparison(
        first=first,
        second=second,
        grader=grader,
        samples=samples,
        num_left_out=first.suite.num_items - count,
        first_mean=sum(befores) / count,
        second_mean=sum(afters) / count,
        wins=changes.count("better"),
        losses=changes.count("worse"),
        difference=100 * (sum(afters) - sum(befores)) / count,
        low=100 * low,
        high=100 * high,
        p_value=p_value,
        adjusted=p_value,
        judges=compare_judges(first, second, grader),
    )


def check_number(evaluations: Sequence[Evaluation]) -> None:
    if not FEWEST <= len(evaluations) <= MOST:
        raise UserError(
            f"Choose {FEWEST} to {MOST} evaluations to compare; these are {len(evaluations)}.",
            field="evaluations",
        )


def check_comparable(evaluations: Sequence[Evaluation], grader: str) -> str:
    """The grader to compare by."""
    first = evaluations[0]
    if any(each.suite_id != first.suite_id for each in evaluations):
        raise UserError("Only evaluations of one suite can be compared: their prompts differ.")
    for evaluation in evaluations:
        if evaluation.status != Evaluation.Status.DONE:
            raise UserError(f"The evaluation of {name_subject(evaluation)} has not finished.")
    names = name_graders(first.suite) or list(first.scores)  # another program's own metrics
    if not names:
        raise UserError(f"Nothing of {first.suite.name} is scored item by item.")
    if grader and grader not in names:
        raise UserError(
            f"The suite has no grader {grader}: it has {', '.join(names)}.", field="grader"
        )
    return grader or names[0]


def _pair_samples(first: Evaluation, before: Answers, after: Answers) -> list[ComparedSample]:
    items = first.suite.items
    samples = [
        ComparedSample(
            index=index,
            item=items[index],
            before=before[index],
            after=after[index],
        )
        for index in sorted(before.keys() & after.keys())
    ]
    return sorted(samples, key=lambda sample: (ORDER.index(sample.change), sample.index))
