"""Sweeps and early stops through the launch form and REST."""

import json
import re

import pytest
from django.test import Client

from tests.webapp.cast import make_actor, make_base_model, sign_in
from tests.webapp.runs.test_pages_launch import fill, make_version
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.evals.models import EvalSuite
from webapp.runs.history import name_score
from webapp.runs.models import Run, RunGroup

pytestmark = pytest.mark.django_db

GRID = {"learning_rate": [1e-3, 1e-2], "seed": [1, 2]}


@pytest.fixture
def alice() -> Actor:
    make_base_model()
    return make_actor()


@pytest.fixture
def browser(alice: Actor) -> Client:
    make_version(alice)
    return sign_in(alice)


@pytest.fixture
def program(alice: Actor) -> Client:
    _, secret = create_key(actor=alice, name="test")
    return Client(headers={"X-API-Key": secret})


def test_the_form_launches_a_sweep_and_goes_to_its_page(browser: Client) -> None:
    sweep = "learning_rate: 1e-3, 1e-2\nseed: 1, 2"
    answer = browser.post("/runs/new/", fill(browser.get("/runs/new/"), sweep=sweep, name="rates"))
    group = RunGroup.objects.get()
    assert answer.headers["Location"] == f"/runs/groups/{group.pk}/"
    assert (group.name, group.runs.count()) == ("rates", 4)
    assert group.spec["grid"] == GRID


def test_a_sweep_that_is_none_is_said_beside_its_field(browser: Client) -> None:
    for wrong, said in (
        ("rate", "not a setting with values"),
        ("seed: " + ", ".join(map(str, range(33))), "list of 1 to 32"),
        ("no_such_setting: 1, 2", "no_such_setting"),
        ("learning_rate: NaN, 1e-3", "learning_rate"),
        ("learning_rate: 1e999, 1e-3", "learning_rate"),
        ("seed: " + "1" * 5000, "seed"),
        ("seed: " + "[" * 100_000, "seed"),
    ):
        answer = browser.post("/runs/new/", fill(browser.get("/runs/new/"), sweep=wrong))
        assert answer.status_code == 400
        assert said in answer.content.decode()
    assert not Run.objects.exists()
    assert not RunGroup.objects.exists()


@pytest.mark.parametrize("name", ["seeds", ""])
def test_the_call_that_the_form_shows_launches_the_same_sweep(
    browser: Client, program: Client, name: str
) -> None:
    page = browser.get("/runs/new/")
    filled = fill(page, sweep="seed: 1, 2", name=name)
    shown = browser.post("/runs/new/forecast/", filled).context["export"].curl
    assert "/rest/sweeps" in shown
    body = json.loads(re.findall(r"-d '(.*)'", shown, re.DOTALL)[0])
    answer = program.post("/rest/sweeps", body, content_type="application/json")
    assert answer.status_code == 201
    assert [run["config"]["seed"] for run in answer.json()["runs"]] == [2, 1]
    assert {run["group"] for run in answer.json()["runs"]} == {answer.json()["id"]}
    assert answer.json()["name"] == (name or "Sweep over seed")


def test_a_repeated_call_launches_no_second_sweep(alice: Actor, program: Client) -> None:
    version = make_version(alice)
    body = {"base_model": "tiny-chatml-1m", "dataset_version": version.pk, "grid": GRID}
    answers = [
        program.post(
            "/rest/sweeps",
            body,
            content_type="application/json",
            headers={"Idempotency-Key": "once"},
        )
        for _ in range(2)
    ]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert Run.objects.count() == 4
    group = answers[0].json()["id"]
    assert program.get("/rest/run-groups").json()["results"][0]["id"] == group
    assert len(program.get(f"/rest/run-groups/{group}").json()["runs"]) == 4
    stopped = program.post(f"/rest/run-groups/{group}/stop").json()
    assert {run["status"] for run in stopped["runs"]} == {"cancelled"}


@pytest.mark.parametrize(
    "wrong", [{}, {"grid": {"seed": 3}}, {"settings": [1]}, {"grid": {"rank": [-1]}}]
)
def test_a_sweep_that_means_nothing_is_a_400(
    alice: Actor, program: Client, wrong: dict[str, object]
) -> None:
    version = make_version(alice)
    body = {"base_model": "tiny-chatml-1m", "dataset_version": version.pk, **wrong}
    answer = program.post("/rest/sweeps", body, content_type="application/json")
    assert answer.status_code == 400
    assert not RunGroup.objects.exists()


def test_another_projects_group_is_not_there(alice: Actor, program: Client) -> None:
    carol = make_actor("carol")
    theirs = RunGroup.objects.create(project=carol.project, name="theirs", kind="sweep")
    assert program.get(f"/rest/run-groups/{theirs.pk}").status_code == 404
    assert program.post(f"/rest/run-groups/{theirs.pk}/stop").status_code == 404


def test_the_form_makes_the_rule_of_an_early_stop(alice: Actor, browser: Client) -> None:
    page = browser.get("/runs/new/")
    browser.post("/runs/new/", fill(page, early_stop="held_out_loss", patience="4"))
    rule = {"metric": "held_out_loss", "patience": 4, "min_delta": 0.0, "higher_is_better": False}
    assert Run.objects.get().config["early_stop"] == rule
    suite = EvalSuite.objects.create(
        project=alice.project, name="words", status="ready", graders=[{"name": "exact_match"}]
    )
    filled = fill(page, early_stop="suite", eval_suite=suite.pk)
    browser.post("/runs/new/", filled)
    newest = Run.objects.order_by("-created_at").first()
    assert newest is not None
    assert newest.config["early_stop"]["metric"] == "eval/words/exact_match"
    assert newest.config["early_stop"]["higher_is_better"]
    assert browser.post("/runs/new/", fill(page, early_stop="suite")).status_code == 400


def test_the_rule_watches_the_curve_of_a_suite_with_a_long_name(
    alice: Actor, browser: Client
) -> None:
    suite = EvalSuite.objects.create(
        project=alice.project, name="long " * 20, status="ready", graders=[{"name": "contains"}]
    )
    filled = fill(browser.get("/runs/new/"), early_stop="suite", eval_suite=suite.pk)
    browser.post("/runs/new/", filled)
    watched = Run.objects.get().config["early_stop"]["metric"]
    assert watched == name_score(suite.name, "contains")
    assert len(watched) < len(suite.name)


@pytest.mark.parametrize(
    "typed", ["[" * 100_000, "[" + "1" * 5000 + "]", '[{"role": "user", "content": "\\ud800"}]']
)
def test_a_pinned_prompt_that_no_database_stores_is_said_beside_its_field(
    browser: Client, typed: str
) -> None:
    answer = browser.post("/runs/new/", fill(browser.get("/runs/new/"), prompts=typed))
    assert answer.status_code == 400
    assert "Line 1 begins like a JSON list, and is none." in answer.content.decode()


def test_without_a_rule_the_config_says_nothing_of_one(browser: Client) -> None:
    browser.post("/runs/new/", fill(browser.get("/runs/new/")))
    assert "early_stop" not in Run.objects.get().config


def test_a_program_steers_what_a_page_steers(alice: Actor, program: Client) -> None:
    run = Run.objects.create(
        project=alice.project,
        name="rl",
        origin="rest",
        recipe="rl",
        status="running",
        base_model=make_base_model("other"),
        rank=4,
        config={"kl_coefficient": 0.05},
    )
    body = {"kl_coefficient": 0.1}
    assert program.post(f"/rest/runs/{run.pk}/kl-coefficient", body, "application/json").json()
    assert program.post(f"/rest/runs/{run.pk}/stop-after-save").status_code == 200
    run.refresh_from_db()
    assert (run.steering["kl_coefficient"], run.steering["stop_after_save"]) == (0.1, True)
    for wrong in ({}, {"kl_coefficient": -1}, {"kl_coefficient": 1e9}, {"kl_coefficient": "x"}):
        answer = program.post(f"/rest/runs/{run.pk}/kl-coefficient", wrong, "application/json")
        assert answer.status_code == 400
