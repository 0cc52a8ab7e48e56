"""Pages and REST of aliases, and of what several evaluations make."""

from typing import Any

import pytest
from django.test import Client

from tests.webapp.cast import count_queries, make_actor, make_viewer, sign_in
from tests.webapp.deployments.conftest import read
from tests.webapp.evals.cast import make_evaluation, make_suite, make_trained
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.checkpoints.models import Checkpoint
from webapp.evals.aliases import create_alias, request_move
from webapp.evals.models import Alias, AliasMove, EvalSuite

FORM = {"name": "prod", "test": "better", "level": "0.95", "margin": "2"}


@pytest.fixture
def alice(db: None) -> Actor:
    return make_actor("alice")


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


@pytest.fixture
def rest(alice: Actor) -> Client:
    _, secret = create_key(actor=alice, name="tests")
    return Client(headers={"X-API-Key": secret})


@pytest.fixture
def suite(alice: Actor) -> EvalSuite:
    return make_suite(alice, 12, name="sums")


@pytest.fixture
def old(alice: Actor, suite: EvalSuite) -> Checkpoint:
    checkpoint = make_trained(alice, "old", 10)
    make_evaluation(suite, [0] * 10 + [1, 1], checkpoint=checkpoint)
    return checkpoint


@pytest.fixture
def new(alice: Actor, suite: EvalSuite) -> Checkpoint:
    checkpoint = make_trained(alice, "new", 40)
    make_evaluation(suite, [1] * 12, checkpoint=checkpoint)
    return checkpoint


def test_without_one_the_list_says_what_an_alias_is(browser: Client) -> None:
    page = read(browser, "/evals/aliases/")
    assert "Make an alias" in page
    assert "/rest/aliases" in page


def test_from_a_name_to_a_move_and_back(
    browser: Client, suite: EvalSuite, old: Checkpoint, new: Checkpoint
) -> None:
    browser.post("/evals/aliases/new/", FORM | {"suite": suite.pk})
    alias = Alias.objects.get()
    url = f"/evals/aliases/{alias.pk}/"
    assert "a paired test at 95 % has to say so" in read(browser, url)
    browser.post(f"{url}move/", {"checkpoint": old.pk})
    assert "It named nothing before." in read(browser, url)
    page = browser.post(f"{url}move/", {"checkpoint": new.pk}, follow=True).content.decode()
    assert "prod names new, step 40 now." in page
    assert "better on 10, worse on 0 of 12" in page
    assert "Roll back to old, step 10" in page
    assert f">{alias.name}</a>" in read(browser, f"/checkpoints/{new.pk}/")
    assert "Move prod here" not in read(browser, f"/checkpoints/{new.pk}/")
    assert "Move prod here" in read(browser, f"/checkpoints/{old.pk}/")
    chosen = read(browser, f"{url}?checkpoint={old.pk}")
    assert f'<option value="{old.pk}" selected>' in chosen
    browser.post(f"{url}rollback/")
    alias.refresh_from_db()
    assert alias.checkpoint == old
    page = browser.post(f"{url}rollback/", follow=True).content.decode()
    assert "nothing to roll back to" in page


def test_a_refused_move_says_why(
    browser: Client, alice: Actor, suite: EvalSuite, old: Checkpoint, new: Checkpoint
) -> None:
    alias = create_alias(actor=alice, name="prod", suite=suite)
    url = f"/evals/aliases/{alias.pk}/"
    browser.post(f"{url}move/", {"checkpoint": new.pk})
    page = browser.post(f"{url}move/", {"checkpoint": old.pk}, follow=True).content.decode()
    assert "prod stays where it is" in page
    assert "That is not better at 95 %" in page
    assert "Compare them" in page
    for data in ({"checkpoint": new.pk}, {"checkpoint": "ckpt-none"}, {}):
        response = browser.post(f"{url}move/", data)
        assert response.status_code == 400
    assert (
        "prod names new, step 40 already"
        in browser.post(f"{url}move/", {"checkpoint": new.pk}).content.decode()
    )


def test_a_move_that_waits_shows_what_for_and_can_be_called_off(
    browser: Client, alice: Actor, suite: EvalSuite, old: Checkpoint
) -> None:
    alias = create_alias(actor=alice, name="prod", suite=suite)
    url = f"/evals/aliases/{alias.pk}/"
    browser.post(f"{url}move/", {"checkpoint": old.pk})
    browser.post(f"{url}move/", {"checkpoint": make_trained(alice, "third", 3).pk})
    page = read(browser, url)
    assert "waits for what decides" in page
    assert "0 of 12 answered" in page
    browser.post(f"{url}call-off/")
    assert "It was called off." in read(browser, url)
    assert "waits for no move" in browser.post(f"{url}call-off/", follow=True).content.decode()
    browser.post(f"{url}delete/")
    assert not Alias.objects.exists()


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("name", "", "An alias needs a name."),
        ("name", "two words", "An alias is named by letters"),
        ("level", "1", "level is 1; it lies between 0.5 and 0.9999"),
        ("level", "x", "Enter a number"),
        ("margin", "-1", "margin is -1"),
        ("suite", "suite-none", "Select a valid choice"),
        ("test", "best", "Select a valid choice"),
    ],
)
def test_what_is_wrong_with_an_alias_stands_beside_its_field(
    browser: Client, suite: EvalSuite, field: str, value: str, told: str
) -> None:
    response = browser.post("/evals/aliases/new/", FORM | {"suite": suite.pk, field: value})
    assert response.status_code == 400
    assert told in response.content.decode()


def test_strangers_and_viewers_change_nothing(
    alice: Actor, suite: EvalSuite, old: Checkpoint, new: Checkpoint
) -> None:
    alias = create_alias(actor=alice, name="prod")
    request_move(actor=alice, alias=alias, checkpoint=old)
    stranger, viewer = sign_in(make_actor("charlie")), sign_in(make_viewer(alice))
    assert stranger.get(f"/evals/aliases/{alias.pk}/").status_code == 404
    assert "old, step 10" in read(viewer, f"/evals/aliases/{alias.pk}/")
    for act in ("move", "rollback", "call-off", "delete"):
        url = f"/evals/aliases/{alias.pk}/{act}/"
        assert stranger.post(url, {"checkpoint": new.pk}).status_code == 404
        viewer.post(url, {"checkpoint": new.pk})
    viewer.post("/evals/aliases/new/", FORM)
    assert Alias.objects.get().checkpoint == old
    assert AliasMove.objects.count() == 1


def test_the_list_takes_the_same_queries_for_one_alias_and_for_five(
    browser: Client, alice: Actor, suite: EvalSuite, old: Checkpoint
) -> None:
    def add(name: str) -> None:
        alias = create_alias(actor=alice, name=name, suite=suite)
        request_move(actor=alice, alias=alias, checkpoint=old)

    add("one")
    few = count_queries(browser, "/evals/aliases/")
    for name in ("two", "three", "four", "five"):
        add(name)
    assert count_queries(browser, "/evals/aliases/") == few


def test_checkpoints_are_chosen_by_their_alias(
    browser: Client, alice: Actor, old: Checkpoint
) -> None:
    alias = create_alias(actor=alice, name="prod")
    request_move(actor=alice, alias=alias, checkpoint=old)
    for url in ("/evals/new/", "/playground/", "/deployments/new/"):
        assert "prod: old / step-10 (step 10)" in read(browser, url)


def test_rest_makes_moves_and_takes_back(
    rest: Client, suite: EvalSuite, old: Checkpoint, new: Checkpoint
) -> None:
    def post(url: str, **body: Any) -> Any:
        return rest.post(url, body, content_type="application/json")

    made = post("/rest/aliases", name="prod", suite=suite.pk, test="not_worse", margin=1.5)
    assert made.status_code == 201
    assert made.json()["rule"] == {
        "grader": "exact_match", "test": "not_worse", "margin": 1.5, "level": 0.95,
    }  # fmt: skip
    assert post("/rest/aliases/prod/moves", checkpoint=new.pk).json()["outcome"] == "moved"
    refused = post("/rest/aliases/prod/moves", checkpoint=old.pk)
    assert refused.status_code == 202
    assert refused.json()["outcome"] == "refused"
    assert refused.json()["statistics"]["losses"] == 10
    assert "not above the margin of -1.5" in refused.json()["text"]
    assert rest.post("/rest/aliases/prod/rollback").status_code == 400
    assert [each["outcome"] for each in rest.get("/rest/aliases/prod/moves").json()] == [
        "refused",
        "moved",
    ]
    assert rest.get("/rest/aliases").json()["results"][0]["checkpoint"] == new.pk
    assert rest.delete("/rest/aliases/prod/moves").status_code == 400
    assert rest.delete(f"/rest/aliases/{made.json()['id']}").status_code == 204
    assert rest.get("/rest/aliases/prod").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {}, {"name": "x", "suite": "suite-none"}, {"name": "x", "level": "high"},
        {"name": "x", "test": "best"}, {"name": "x" * 300}, {"name": ["x"]}, {"name": "a\0b"},
    ],
)  # fmt: skip
def test_rest_refuses_what_is_no_alias(rest: Client, body: dict[str, Any]) -> None:
    response = rest.post("/rest/aliases", body, content_type="application/json")
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_rest_tells_the_numbers_of_the_page(
    rest: Client, suite: EvalSuite, old: Checkpoint, new: Checkpoint
) -> None:
    base = make_evaluation(suite, [0, 1] * 6)
    ids = [base.pk, *suite.evaluations.exclude(pk=base.pk).values_list("pk", flat=True)]
    answer = rest.get(f"/rest/evals/compare?evaluations={','.join(ids)}&baseline={base.pk}").json()
    assert answer["baseline"] == base.pk
    assert answer["verdict"].startswith("Against model: ")
    by_name = {each["weights"]: each for each in answer["comparisons"]}
    found = by_name["new, step 40"]
    # 6 better, none worse: 2 / 2^6, and by Holm over two twice that.
    assert (found["wins"], found["losses"], found["ties"]) == (6, 0, 6)
    assert (found["p_value"], found["adjusted_p_value"]) == (0.03125, 0.0625)
    assert found["outcome"] == "may be chance"
    assert found["relation"] == ["new, step 40 was trained from model; its last run made 40 steps."]
    assert answer["flips"][0]["change"] == "worse"
    for query in ("", "?evaluations=", f"?evaluations={base.pk}", "?evaluations=a,b"):
        assert rest.get(f"/rest/evals/compare{query}").status_code in (400, 404)
