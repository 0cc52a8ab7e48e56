"""The rule of an alias is changed on its page and over REST, and its history keeps each."""

from importlib import import_module
from typing import Any

import pytest
from django.apps import apps
from django.test import Client

from tests.webapp.cast import make_actor, make_viewer, sign_in
from tests.webapp.evals.cast import make_evaluation, make_suite, make_trained
from webapp.accounts.models import Actor, AuditEntry
from webapp.accounts.services import create_key
from webapp.core.errors import NotFound, UserError
from webapp.evals.aliases import call_off, create_alias, request_move, settle_move
from webapp.evals.models import Alias, AliasMove, AliasRule, EvalSuite
from webapp.evals.rule_changes import change_rule

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice() -> Actor:
    return make_actor("alice")


@pytest.fixture
def suite(alice: Actor) -> EvalSuite:
    return make_suite(alice, 12, name="sums")


@pytest.fixture
def prod(alice: Actor, suite: EvalSuite) -> Alias:
    """It names something already, so that the next move is tested."""
    alias = create_alias(actor=alice, name="prod", suite=suite)
    first = make_trained(alice, "old")
    make_evaluation(suite, [0] * 6 + [1] * 6, checkpoint=first)
    request_move(actor=alice, alias=alias, checkpoint=first)
    alias.refresh_from_db()
    return alias


def open_rest(actor: Actor) -> Client:
    _, secret = create_key(actor=actor, name="tests")
    return Client(headers={"X-API-Key": secret})


def test_the_page_changes_a_rule_and_says_from_when_each_held(alice: Actor, prod: Alias) -> None:
    browser = sign_in(alice)
    url = f"/evals/aliases/{prod.pk}/"
    form = browser.get(f"{url}rule/")
    assert form.context["form"]["suite"].value() == prod.suite_id
    assert form.context["form"]["test"].value() == "better"
    assert f"{url}rule/" in browser.get(url).text
    sent = {"suite": prod.suite_id, "test": "not_worse", "level": "0.9", "margin": "3"}
    assert browser.post(f"{url}rule/", sent).status_code == 302
    prod.refresh_from_db()
    wanted = {"grader": "exact_match", "test": "not_worse", "margin": 3.0, "level": 0.9}
    assert prod.rule == wanted
    page = browser.get(url)
    assert 'tabindex="0" role="region" aria-label="Rules"' in page.text  # it scrolls by keys
    told = [text for _, text in page.context["rules"]]
    assert ["not worse" in text for text in told] == [True, False]
    assert "better on sums" in told[1]
    entry = AuditEntry.objects.get(event="alias_rule_changed")
    assert (entry.user, entry.details["alias"]) == (alice.user, "prod")
    assert "better on sums" in entry.details["before"]
    assert "not worse on sums" in entry.details["rule"]


def test_the_next_move_is_tested_by_the_new_rule(
    alice: Actor, prod: Alias, suite: EvalSuite
) -> None:
    same = make_trained(alice, "same", 20)
    make_evaluation(suite, [0] * 6 + [1] * 6, checkpoint=same)
    assert request_move(actor=alice, alias=prod, checkpoint=same).outcome == "refused"
    change_rule(actor=alice, alias=prod, suite=suite, test="not_worse", margin=100.0)
    moved = request_move(actor=alice, alias=prod, checkpoint=same)
    assert (moved.outcome, moved.statistics["margin"]) == ("moved", 100.0)
    prod.refresh_from_db()
    change_rule(actor=alice, alias=prod)
    old = AliasMove.objects.order_by("pk").first()
    assert old is not None
    assert old.checkpoint is not None
    freely = request_move(actor=alice, alias=prod, checkpoint=old.checkpoint)
    assert freely.text == "It moves freely."


def test_a_rule_that_is_the_same_begins_no_second_time(alice: Actor, prod: Alias) -> None:
    change_rule(actor=alice, alias=prod, suite=prod.suite)
    assert AliasRule.objects.count() == 1
    assert not AuditEntry.objects.filter(event="alias_rule_changed").exists()


def test_what_waits_was_asked_under_the_rule_before(
    alice: Actor, prod: Alias, suite: EvalSuite
) -> None:
    move = request_move(actor=alice, alias=prod, checkpoint=make_trained(alice, "new", 30))
    assert move.outcome == "waiting"
    with pytest.raises(UserError, match="call it off"):
        change_rule(actor=alice, alias=Alias.objects.get(pk=prod.pk))
    prod.refresh_from_db()
    assert (prod.suite_id, AliasRule.objects.count()) == (suite.pk, 1)
    call_off(actor=alice, alias=prod)
    change_rule(actor=alice, alias=prod)
    newest = prod.rules.first()
    assert newest is not None
    assert (newest.suite_id, newest.rule) == (None, {})


def test_a_move_that_was_begun_for_another_suite_is_refused(
    alice: Actor, prod: Alias, suite: EvalSuite
) -> None:
    new = make_trained(alice, "new", 30)
    move = request_move(actor=alice, alias=prod, checkpoint=new)
    make_evaluation(suite, [1] * 12, checkpoint=new)
    move.evaluation = new.evaluations.get(status="done")
    move.save()
    Alias.objects.filter(pk=prod.pk).update(suite=make_suite(alice, 12))
    assert settle_move(move)
    move.refresh_from_db()
    assert (move.outcome, "another suite" in move.text) == ("refused", True)


def test_rest_changes_a_rule_and_lists_all(alice: Actor, prod: Alias, suite: EvalSuite) -> None:
    rest = open_rest(alice)
    path = "/rest/aliases/prod/rules"
    body = {"suite": suite.pk, "test": "not_worse", "margin": 2}
    made = rest.post(path, body, content_type="application/json")
    assert made.status_code == 201, made.content
    assert made.json()["rule"]["margin"] == 2
    listed = rest.get(path).json()
    assert [each["rule"]["test"] for each in listed] == ["not_worse", "better"]
    assert listed[0]["user"] == "alice"
    assert listed[0]["created_at"] > listed[1]["created_at"]
    assert "not worse" in listed[0]["text"]
    assert rest.get("/rest/aliases/prod").json()["rule"]["test"] == "not_worse"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"suite": "nothing"}, "suite"),
        ({"test": "finer"}, "test"),
        ({"suite": "own", "grader": "nobody"}, "grader"),
        ({"suite": "own", "level": 2}, "level"),
        ({"suite": "own", "margin": -1}, "margin"),
        ({"suite": "own", "margin": "NaN"}, "margin"),
        ({"suite": "own", "level": 1e400}, ""),
    ],
)
def test_rest_refuses_what_is_no_rule(
    alice: Actor, prod: Alias, body: dict[str, Any], field: str
) -> None:
    sent = body | ({"suite": prod.suite_id} if body.get("suite") == "own" else {})
    refused = open_rest(alice).post(
        f"/rest/aliases/{prod.pk}/rules", sent, content_type="application/json"
    )
    assert refused.status_code == 400, refused.content
    assert field in refused.content.decode()
    assert AliasRule.objects.count() == 1


def test_strangers_and_viewers_change_no_rule(alice: Actor, prod: Alias) -> None:
    path = f"/evals/aliases/{prod.pk}/rule/"
    sent = {"suite": "", "test": "better", "level": "0.9"}
    assert sign_in(make_actor("carol")).post(path, sent).status_code == 404
    viewer = sign_in(make_viewer(alice))
    assert viewer.post(path, sent).status_code == 400
    assert path not in viewer.get(f"/evals/aliases/{prod.pk}/").text
    with pytest.raises(NotFound):
        change_rule(actor=alice, alias=prod, suite=make_suite(make_actor("dave"), 2))
    assert AliasRule.objects.count() == 1


def test_an_alias_from_before_has_the_rule_that_it_was_made_with(prod: Alias) -> None:
    AliasRule.objects.all().delete()
    migration = import_module("webapp.evals.migrations.0006_rules_of_aliases")
    migration.begin_rules(apps, None)
    kept = AliasRule.objects.get()
    assert (kept.alias, kept.suite, kept.rule) == (prod, prod.suite, prod.rule)
    assert kept.created_at == prod.created_at
