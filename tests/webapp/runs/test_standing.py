"""What a person reads where a run does not go on."""

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from tests.webapp.cast import make_actor, make_base_model, make_run, sign_in
from tests.webapp.runs.test_pages import make_recipe_run
from webapp.accounts.models import Actor
from webapp.fleet.capacity import Capacity
from webapp.fleet.models import BaseModel, Worker
from webapp.runs import queue
from webapp.runs.models import Run
from webapp.runs.standing import explain_wait, explain_waits

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice() -> Actor:
    return make_actor()


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


@pytest.fixture
def base_model(db: None) -> BaseModel:
    return make_base_model("acme/Tiny")


def make_queued(actor: Actor, base_model: BaseModel, **columns: object) -> Run:
    return make_recipe_run(actor, base_model, status=Run.Status.QUEUED, **columns)


def test_a_queued_run_says_how_many_are_before_it_whoever_they_belong_to(
    alice: Actor, base_model: BaseModel
) -> None:
    Worker.objects.create(name="w", kind="gpu")
    carol = make_actor("carol")
    first = make_queued(alice, base_model)
    assert explain_wait(first) == "it begins in a moment"
    last = make_queued(alice, base_model)
    make_queued(carol, base_model)
    assert explain_wait(last) == "waiting behind 1 other run"
    make_recipe_run(carol, base_model)
    make_run(carol, base_model)
    assert explain_wait(last) == "waiting behind 2 other runs"


def test_nobody_who_trains_is_said_before_all_else(alice: Actor, base_model: BaseModel) -> None:
    run = make_queued(alice, base_model)
    assert explain_wait(run) == "waiting for a gpu worker: none is alive"


def test_a_run_whose_model_is_being_loaded_says_so(alice: Actor, base_model: BaseModel) -> None:
    Worker.objects.create(name="w", kind="gpu", holds={"loading": "acme/Tiny"})
    run = make_run(alice, base_model)
    assert explain_wait(run) == ""  # its program has asked for nothing
    queue.submit_operation(run, seq=0, kind="create_model", payload=b"{}")
    assert explain_wait(run) == "the worker w is loading acme/Tiny"


def test_a_run_that_is_over_or_paused_waits_for_nobody(alice: Actor, base_model: BaseModel) -> None:
    for status in (Run.Status.DONE, Run.Status.FAILED, Run.Status.PAUSED):
        assert explain_wait(make_recipe_run(alice, base_model, status=status)) == ""


def test_many_runs_are_explained_with_two_queries(
    alice: Actor, base_model: BaseModel, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    runs = [make_queued(alice, base_model) for _ in range(5)]
    runs += [make_recipe_run(alice, base_model) for _ in range(5)]
    with django_assert_num_queries(2):
        standings = explain_waits(runs, Capacity())
    assert [each.wait for each in standings[:2]] == [
        "waiting behind 5 other runs",
        "waiting behind 6 other runs",
    ]


def test_the_runs_page_and_the_overview_say_it(
    browser: Client, alice: Actor, base_model: BaseModel
) -> None:
    queued = make_queued(alice, base_model, name="patient")
    running = make_run(alice, base_model)
    queue.submit_operation(running, seq=0, kind="create_model", payload=b"{}")
    for path in (f"/runs/{queued.pk}/", f"/runs/{running.pk}/parts/stats/"):
        page = browser.get(path).content.decode()
        assert "Waiting for a gpu worker: none is alive." in page
        assert "every 10s" in page
    overview = browser.get("/").content.decode()
    assert overview.count("waiting for a gpu worker: none is alive") == 2
    Worker.objects.create(name="w", kind="gpu")
    assert "every 10s" not in browser.get(f"/runs/{running.pk}/parts/stats/").content.decode()
