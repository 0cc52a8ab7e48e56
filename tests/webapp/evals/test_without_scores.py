"""Suites that nothing grades, and evaluations without a result: every page and door answers."""

from typing import Any

import pytest
from django.test import Client

from tests.webapp.cast import make_actor, sign_in
from tests.webapp.evals.cast import make_evaluation, make_suite, make_trained
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.core.errors import UserError
from webapp.evals import services
from webapp.evals.aliases import create_alias
from webapp.evals.models import EvalResult, EvalSuite, Evaluation

pytestmark = pytest.mark.django_db

Status = Evaluation.Status
SHAPES: dict[str, dict[str, Any]] = {
    "no grader": {"graders": []},
    "no grader and many samples": {
        "graders": [],
        "sampling": {"num_samples": 2, "pass_at": [1, 2], "temperature": 1.0, "seed": 0},
    },
    "no item": {"items": [], "num_items": 0},
    "nothing at all": {"graders": [], "items": [], "num_items": 0, "sampling": {}},
    "another program's": {"graders": [], "kind": EvalSuite.Kind.LM_EVAL},
}


@pytest.fixture
def alice() -> Actor:
    return make_actor("alice")


def make_rows(alice: Actor, shape: dict[str, Any]) -> tuple[EvalSuite, list[Evaluation]]:
    """An evaluation in every status, none with a result; two with answers that have no score."""
    suite = make_suite(alice, 2, **shape)
    trained = make_trained(alice)
    found = [
        make_evaluation(suite, [], checkpoint=checkpoint, run=None, status=status)
        for status in Status.values
        for checkpoint in (trained, None)
    ]
    for each in found[:2]:
        for item in range(suite.num_items):
            EvalResult.objects.create(evaluation=each, index=item, completion="4")
    return suite, found


@pytest.mark.parametrize("shape", SHAPES)
def test_every_page_and_door_answers(alice: Actor, shape: str) -> None:
    suite, evaluations = make_rows(alice, SHAPES[shape])
    done = [each for each in evaluations if each.status == Status.DONE]
    run = next(each.checkpoint.run_id for each in done if each.checkpoint)
    pair = f"evaluations={done[0].pk},{done[1].pk}"
    pages = ["", "matrix/", f"matrix/?run={run}", f"steps/?run={run}", f"steps/csv/?run={run}"]
    pages += ["compare/", f"compare/?{pair}", f"suites/{suite.pk}/", "aliases/new/", "new/"]
    pages += [f"{each.pk}/{more}" for each in evaluations for more in ("", "?show=right")]
    browser = sign_in(alice)
    for page in [*(f"/evals/{page}" for page in pages), "/", f"/runs/{run}/", "/runs/new/"]:
        assert browser.get(page).status_code == 200, page
    for ending in ("csv/", "html/", "answers/"):
        refused = browser.get(f"/evals/compare/{ending}?{pair}&item=0")
        assert refused.status_code == 400, ending
        assert "scored" in refused.content.decode() or "in common" in refused.content.decode()
    _, secret = create_key(actor=alice, name="k")
    client = Client(headers={"authorization": f"Bearer {secret}"})
    paths = ["suites", f"suites/{suite.pk}", "evaluations"]
    paths += [f"evaluations/{each.pk}{more}" for each in evaluations for more in ("", "/results")]
    for path in paths:
        assert client.get(f"/rest/{path}").status_code == 200, path
    for path in (f"evals/compare?{pair}", f"evaluations/compare?a={done[0].pk}&b={done[1].pk}"):
        assert client.get(f"/rest/{path}").status_code == 400, path


def test_no_alias_waits_for_a_suite_that_nothing_grades(alice: Actor) -> None:
    suite = make_suite(alice, 2, graders=[])
    with pytest.raises(UserError, match="Nothing grades") as refused:
        create_alias(actor=alice, name="prod", suite=suite)
    assert refused.value.field == "suite"


def test_what_no_grader_graded_has_failed_and_says_so(alice: Actor) -> None:
    suite = make_suite(alice, 1, graders=[])
    evaluation = make_evaluation(suite, [1.0], status=Status.RUNNING)
    services.settle(evaluation)
    evaluation.refresh_from_db()
    assert (evaluation.status, evaluation.scores) == (Status.FAILED, {})
    assert evaluation.error == "No grader of the suite has graded an answer."
