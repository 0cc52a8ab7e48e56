"""Evaluations that different judges' weights scored are not compared as if one had."""

import csv
from collections.abc import Callable

import pytest
from django.test import Client

from tests.webapp.cast import make_actor, sign_in
from tests.webapp.evals.cast import make_suite, make_trained
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.evals.aliases import create_alias, request_move
from webapp.evals.comparison import compare, compare_all, sum_up
from webapp.evals.models import EvalResult, EvalSuite, Evaluation
from webapp.evals.services import settle

pytestmark = pytest.mark.django_db

JUDGE = {"name": "llm_judge", "judge": "judge", "rubric": "It is right."}
A, B = "a" * 64, "b" * 64


@pytest.fixture
def alice() -> Actor:
    return make_actor("alice")


@pytest.fixture
def suite(alice: Actor) -> EvalSuite:
    return make_suite(alice, 12, name="essays", graders=[JUDGE, {"name": "contains"}])


@pytest.fixture
def judge(alice: Actor, suite: EvalSuite) -> Callable[..., Evaluation]:
    """Done; each answer was judged by the next of the digests, or nobody knows by which."""

    def judge(name: str, score: float, *digests: str) -> Evaluation:
        checkpoint = make_trained(alice, name)
        evaluation = Evaluation.objects.create(
            project=alice.project,
            suite=suite,
            base_model=checkpoint.base_model,
            checkpoint=checkpoint,
            status=Evaluation.Status.RUNNING,
        )
        for index in range(12):
            EvalResult.objects.create(
                evaluation=evaluation,
                index=index,
                completion=f"{name} {index}",
                scores={"llm_judge": score, "contains": 1.0},
                judges={"llm_judge": digests[index % len(digests)]} if digests else {},
            )
        settle(evaluation)
        evaluation.refresh_from_db()
        assert evaluation.status == Evaluation.Status.DONE
        return evaluation

    return judge


Judge = Callable[..., Evaluation]


def test_scores_of_one_judge_are_compared_as_ever(judge: Judge) -> None:
    found = compare(judge("old", 0.2, A), judge("new", 0.8, A))
    assert (found.judges.text, found.outcome) == ("", "better")
    assert found.first.served["judges"] == {"llm_judge": [A]}


@pytest.mark.parametrize("second", [[B], [A, B]])
def test_scores_of_different_judges_say_nothing_of_better(judge: Judge, second: list[str]) -> None:
    found = compare(judge("old", 0.2, A), judge("new", 0.8, *second))
    assert (found.outcome, found.is_significant) == ("other judge", False)
    assert "by different judges" in found.verdict
    assert "old, step 10 by aaaaaaaaaaaa" in found.judges.text
    assert "bbbbbbbbbbbb" in found.judges.text


def test_two_mixtures_of_the_same_judges_are_not_one_judge(judge: Judge) -> None:
    assert not compare(judge("old", 0.2, A, B), judge("new", 0.8, A, B)).is_paired


def test_a_judge_that_was_not_kept_is_said_and_hinders_nothing(judge: Judge) -> None:
    found = compare(judge("old", 0.2), judge("new", 0.8, A))
    assert (found.is_paired, found.outcome) == (True, "better")
    assert found.judges.text.startswith("Which weights judged old, step 10 was not kept")


def test_other_graders_have_no_judge(judge: Judge) -> None:
    found = compare(judge("old", 0.2, A), judge("new", 0.8, B), grader="contains")
    assert (found.judges.text, found.outcome) == ("", "the same")


def test_of_several_those_with_another_judge_are_told_apart(judge: Judge) -> None:
    others = [judge("new", 0.8, A), judge("odd", 0.9, B)]
    found = compare_all(judge("old", 0.2, A), others)
    assert (found[0].family, found[0].adjusted) == (1, found[0].p_value)  # the other is no test
    told = sum_up(found)
    assert "new, step 10 is better" in told
    assert "odd, step 10 was scored by another judge and is not compared" in told


def test_no_alias_moves_on_what_another_judge_said(
    alice: Actor, suite: EvalSuite, judge: Judge
) -> None:
    old, new = judge("old", 0.2, A), judge("new", 0.8, B)
    assert old.checkpoint is not None
    assert new.checkpoint is not None
    alias = create_alias(actor=alice, name="prod", suite=suite)
    request_move(actor=alice, alias=alias, checkpoint=old.checkpoint)
    alias.refresh_from_db()
    move = request_move(actor=alice, alias=alias, checkpoint=new.checkpoint)
    assert move.outcome == "refused"
    assert "not judged by the same weights" in move.text


def test_pages_files_and_rest_say_who_judged(alice: Actor, judge: Judge) -> None:
    old, new = judge("old", 0.2, A), judge("new", 0.8, B)
    browser, query = sign_in(alice), f"evaluations={old.pk},{new.pk}"
    page = browser.get(f"/evals/compare/?{query}&slice=target").text
    assert "They were not judged by the same weights" in page
    assert "McNemar" not in browser.get(f"/evals/compare/?{query}").context["verdict"]
    assert browser.get(f"/evals/compare/?{query}").context["facets"] == []
    kept = browser.get(f"/evals/compare/html/?{query}").text
    assert "not judged by the same weights" in kept
    assert "+60.0" in kept
    assert "+60.0 to" not in kept
    lines = b"".join(browser.get(f"/evals/compare/csv/?{query}")).decode().splitlines()
    assert {row["judge_digest"] for row in csv.DictReader(lines)} == {A, B}
    changes = browser.get(f"/evals/compare/?{query}").context["changes"]
    assert [each.values for each in changes if each.name == "llm_judge by"] == [(A[:12], B[:12])]
    assert A in browser.get(f"/evals/{old.pk}/").text
    _, secret = create_key(actor=alice, name="k")
    rest = Client(headers={"authorization": f"Bearer {secret}"})
    [pair] = rest.get(f"/rest/evals/compare?{query}").json()["comparisons"]
    assert (pair["p_value"], pair["interval"], pair["outcome"]) == (None, None, "other judge")
    told = rest.get(f"/rest/evaluations/compare?a={old.pk}&b={new.pk}").json()
    assert (told["p_value"], told["judges"]) == (None, pair["judges"])
    results = rest.get(f"/rest/evaluations/{old.pk}/results").json()
    assert results[0]["judges"] == {"llm_judge": A}
