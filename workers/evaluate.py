"""Builds suites, sends an evaluation's calls, and grades what takes its time."""

from collections.abc import Callable
from functools import partial

from training.recipes.graders import KINDS
from webapp.accounts.models import Project
from webapp.evals.models import EvalResult, EvalSuite, Evaluation
from webapp.evals.services import (
    begin_evaluation,
    list_ungraded,
    mark_built,
    mark_failed,
    mark_suite_failed,
    note_served,
    record_grades,
    settle,
)
from workers.claims import MAX_ATTEMPTS, claim
from workers.grade import JudgeFinder, go_on, grade_with_notes
from workers.judge import open_judge
from workers.remote import RedisWaiter, Waiter
from workers.sandbox import open_sandbox
from workers.suite_items import make_graded, write_grades
from workers.suites import check_items, make_items

GRADED_AT_ONCE = 64


class CancelledError(Exception):
    """Nobody wants the grades any more."""


def build_suite(suite_id: str) -> None:
    with claim(suite_id) as attempt:
        suite = EvalSuite.objects.select_related("dataset_version", "project").get(pk=suite_id)
        if not attempt or suite.status != EvalSuite.Status.BUILDING:
            return
        if attempt > MAX_ATTEMPTS:
            mark_suite_failed(suite, f"The process that built it ended {MAX_ATTEMPTS} times.")
            return
        items = make_items(suite)
        if suite.kind == EvalSuite.Kind.OWN:
            with RedisWaiter() as waiter:
                check_items(items, suite.graders, find_judges(suite.project, waiter, go_on))
        mark_built(suite, items)


def find_judges(project: Project, waiter: Waiter, keep_going: Callable[[], None]) -> JudgeFinder:
    return partial(open_judge, project=project, waiter=waiter, keep_going=keep_going)


def fail_suite(suite_id: str, error: str) -> None:
    mark_suite_failed(EvalSuite.objects.get(pk=suite_id), error)


def evaluate(evaluation_id: str) -> None:
    """Every item's call is sent, once; the sampler stores the answers and ends the evaluation."""
    rows = Evaluation.objects.select_related("suite", "project", "checkpoint", "base_model")
    begin_evaluation(rows.get(pk=evaluation_id))


def grade_evaluation(evaluation_id: str) -> None:
    """What the sampler left ungraded. A process that died left the rest: the next one goes on."""
    rows = Evaluation.objects.select_related("suite", "project")
    evaluation = rows.get(pk=evaluation_id)
    with claim(f"grade-{evaluation_id}") as attempt:
        if not attempt or evaluation.status != Evaluation.Status.RUNNING:
            return
        if attempt > MAX_ATTEMPTS:
            mark_failed(evaluation, f"The process that graded it ended {MAX_ATTEMPTS} times.")
            return
        with RedisWaiter() as waiter:
            grade_rest(evaluation, waiter)
    settle(evaluation)


def grade_rest(evaluation: Evaluation, waiter: Waiter) -> None:
    check = partial(check_wanted, evaluation)
    judges = find_judges(evaluation.project, waiter, check)
    try:
        while results := list(list_ungraded(evaluation)[:GRADED_AT_ONCE]):
            check()
            grade_results(evaluation, results, judges, check)
    except CancelledError:
        return
    if any(KINDS[grader["name"]].place == "sandbox" for grader in evaluation.suite.graders):
        note_served(evaluation, sandbox=open_sandbox().missing or "walls")


def grade_results(
    evaluation: Evaluation,
    results: list[EvalResult],
    judges: JudgeFinder,
    check: Callable[[], None],
) -> None:
    suite = evaluation.suite
    answers = [make_graded(suite.items[each.index], each.completion) for each in results]
    graded = grade_with_notes(suite.graders, answers, judge=judges, keep_going=check)
    for result, grades in zip(results, graded, strict=True):
        for name, value in write_grades(grades).items():
            setattr(result, name, value)
    record_grades(results)


def check_wanted(evaluation: Evaluation) -> None:
    live = Evaluation.objects.filter(pk=evaluation.pk, status=Evaluation.Status.RUNNING)
    if not live.exists():
        raise CancelledError


def fail(evaluation_id: str, error: str) -> None:
    mark_failed(Evaluation.objects.get(pk=evaluation_id), error)
