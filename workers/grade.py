"""Grades answers: pure graders here, what could do harm in the sandbox, judges by asking them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.errors import InvalidInput
from training.recipes.graders import KINDS
from training.recipes.grading import Answer, grade_inline
from training.recipes.grading_judge import Heard, Judge, read_verdict, write_question
from workers.sandbox import Job, open_sandbox
from workers.sandbox_batches import run_jobs
from workers.sandbox_jobs import make_job, read_outcome

Grader = Mapping[str, Any]  # {"name": ..., settings}
JudgeFinder = Callable[[str], Judge]  # by the name of a deployment, a checkpoint or a base model


def go_on() -> None:
    """Nobody wants it to end."""


@dataclass(slots=True, kw_only=True)
class Graded:
    """One answer's scores; what a grader said of it; and which could not grade it, and why."""

    scores: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    judges: dict[str, str] = field(default_factory=dict)  # {judge: digest of the weights that said}

    @property
    def error(self) -> str:
        return " ".join(f"{name}: {error}." for name, error in self.errors.items())


def grade_answers(
    graders: Sequence[Grader],
    answers: Sequence[Answer],
    *,
    judge: JudgeFinder | None = None,
    keep_going: Callable[[], None] = go_on,
) -> list[dict[str, float]]:
    """{grader's name: 0..1} of each answer; a grader that could not grade an answer is absent."""
    graded = grade_with_notes(graders, answers, judge=judge, keep_going=keep_going)
    return [each.scores for each in graded]


def grade_with_notes(
    graders: Sequence[Grader],
    answers: Sequence[Answer],
    *,
    judge: JudgeFinder | None = None,
    keep_going: Callable[[], None] = go_on,
) -> list[Graded]:
    """`keep_going` is asked between answers, and raises to end it."""
    graded = [Graded() for _ in answers]
    collectors = [
        _begin(grader, answers, graded, judge, keep_going)
        for grader in sorted(graders, key=lambda each: KINDS[each["name"]].place != "judge")
    ]
    for collect in collectors:
        collect()
    return graded


def _begin(
    grader: Grader,
    answers: Sequence[Answer],
    graded: Sequence[Graded],
    judge: JudgeFinder | None,
    keep_going: Callable[[], None],
) -> Callable[[], None]:
    """Judges are asked first and heard last: meanwhile the others grade."""
    place = KINDS[grader["name"]].place
    if place == "judge":
        return _ask_judge(grader, answers, graded, judge)
    if place == "sandbox":
        return lambda: _grade_in_sandbox(grader, answers, graded, keep_going)
    return lambda: _grade_here(grader, answers, graded, keep_going)


def _grade_here(
    grader: Grader,
    answers: Sequence[Answer],
    graded: Sequence[Graded],
    keep_going: Callable[[], None],
) -> None:
    for answer, result in zip(answers, graded, strict=True):
        keep_going()
        try:
            result.scores[grader["name"]] = grade_inline(grader, answer)
        except InvalidInput as error:
            result.errors[grader["name"]] = str(error)


def _grade_in_sandbox(
    grader: Grader,
    answers: Sequence[Answer],
    graded: Sequence[Graded],
    keep_going: Callable[[], None],
) -> None:
    jobs: list[tuple[Job, Graded]] = []
    for answer, result in zip(answers, graded, strict=True):
        try:
            jobs.append((make_job(grader, answer), result))
        except InvalidInput as error:
            result.errors[grader["name"]] = str(error)
    outcomes = run_jobs(open_sandbox(), [job for job, _ in jobs], keep_going)
    for (job, result), outcome in zip(jobs, outcomes, strict=True):
        _note_outcome(grader["name"], job, outcome, result)


def _note_outcome(name: str, job: Job, outcome: dict[str, Any] | Exception, result: Graded) -> None:
    if isinstance(outcome, Exception):
        result.errors[name] = str(outcome)
        return
    try:
        result.scores[name], note = read_outcome(job, outcome)
    except InvalidInput as error:
        result.errors[name] = str(error)
    else:
        result.notes |= {name: note} if note else {}


def _ask_judge(
    grader: Grader,
    answers: Sequence[Answer],
    graded: Sequence[Graded],
    judge: JudgeFinder | None,
) -> Callable[[], None]:
    if judge is None:
        raise InvalidInput("nothing here can ask a judge: use another grader than llm_judge")
    asked = judge(grader["judge"]).ask_all(
        [write_question(grader, answer) for answer in answers],
        max_tokens=grader.get("max_tokens", 256),
    )

    def collect() -> None:
        for heard, result in zip(asked, graded, strict=True):
            _hear(grader["name"], heard, result)

    return collect


def _hear(name: str, listen: Callable[[], Heard], result: Graded) -> None:
    try:
        heard = listen()
        result.notes[name], result.judges[name] = heard.text, heard.digest
        result.scores[name] = read_verdict(result.notes[name])
    except InvalidInput as error:
        result.errors[name] = str(error)
