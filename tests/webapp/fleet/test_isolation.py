"""Isolation tests as people start and read them, in the browser and by REST."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils.timezone import now

from tests.webapp.cast import count_queries, make_actor, make_base_model, make_viewer, sign_in
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.core.errors import NotFound, UserError
from webapp.fleet import isolation
from webapp.fleet.isolation import (
    begin_isolation_test,
    fail_isolation_test,
    finish_isolation_test,
    settle_isolation_tests,
    start_isolation_test,
)
from webapp.fleet.models import BaseModel, IsolationTest, Worker

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice() -> Actor:
    return make_actor()


@pytest.fixture
def base_model(db: None) -> BaseModel:
    return make_base_model("acme/Tiny")


@pytest.fixture
def worker(base_model: BaseModel) -> Worker:
    return Worker.objects.create(name="w1", kind="gpu", holds={"shared_models": [base_model.pk]})


def start(actor: Actor, **place: str) -> IsolationTest:
    return start_isolation_test(
        actor=actor, **({"worker": "w1", "base_model": "acme/Tiny"} | place)
    )


def finish(test: IsolationTest, *, is_within: bool = True, share: float = 2e-7) -> None:
    begin_isolation_test(test_id=test.pk, worker="w1")
    row = {"largest": 1e-6, "beside": 5.0, "share": share, "tolerance": 1e-5}
    finish_isolation_test(
        test_id=test.pk,
        dtype="float32",
        num_tokens=400,
        differences=[
            {"quantity": quantity, "is_within": is_within, **row}
            for quantity in ("loss", "logprobs", "gradients")
        ],
        is_passed=is_within,
        seconds=1.5,
    )


@pytest.mark.usefixtures("worker")
def test_one_that_has_not_ended_is_the_answer_to_a_second_request(alice: Actor) -> None:
    first = start(alice)
    assert start(make_actor("carol")) == first
    finish(first)
    assert start(alice) != first


@pytest.mark.usefixtures("worker")
def test_whoever_only_reads_may_not_start_one_but_reads_them(alice: Actor) -> None:
    vera = make_viewer(alice)
    with pytest.raises(UserError, match="viewer"):
        start(vera)
    finish(start(alice))
    page = sign_in(vera).get("/settings/workers/").content.decode()
    assert "passed" in page
    assert "2.000e-7" in page
    assert "Test isolation" not in page
    answer = sign_in(vera).post("/settings/workers/isolation/", {"place": "w1 acme/Tiny"})
    assert answer.status_code == 400
    assert IsolationTest.objects.count() == 1


@pytest.mark.usefixtures("worker")
def test_who_is_not_signed_in_starts_and_reads_nothing() -> None:
    assert Client().post("/settings/workers/isolation/", {"place": "w1 x"}).status_code == 302
    for method in (Client().get, Client().post):
        assert method("/rest/isolation-tests").status_code == 401
    assert not IsolationTest.objects.exists()


def test_only_what_a_living_gpu_worker_holds_is_tested(alice: Actor, worker: Worker) -> None:
    make_base_model("acme/Other")
    with pytest.raises(UserError, match="holds no acme/Other"):
        start(alice, base_model="acme/Other")
    with pytest.raises(NotFound, match="no gpu worker unknown"):
        start(alice, worker="unknown")
    Worker.objects.update(heartbeat_at=now() - timedelta(minutes=5))
    with pytest.raises(NotFound, match="no gpu worker w1 that is alive"):
        start(alice)


def test_the_page_starts_one_and_shows_how_it_stands(alice: Actor, worker: Worker) -> None:
    browser = sign_in(alice)
    page = browser.get("/settings/workers/").content.decode()
    assert "every 30s" in page
    place = f"w1 {BaseModel.objects.get().pk}"
    assert place in page
    answer = browser.post("/settings/workers/isolation/", {"place": place}, follow=True)
    page = answer.content.decode()
    assert "every 2s" in page
    assert "queued" in page
    finish(IsolationTest.objects.get(), is_within=False, share=0.25)
    page = browser.get("/settings/workers/").content.decode()
    assert "not isolated" in page
    assert "0.2500" in page


def test_a_model_that_only_runs_of_all_weights_have_is_not_offered(
    alice: Actor, base_model: BaseModel
) -> None:
    Worker.objects.create(name="w1", kind="gpu", holds={"base_models": [base_model.pk]})
    page = sign_in(alice).get("/settings/workers/").content.decode()
    assert "Test isolation" not in page
    assert "No gpu worker holds a base model that runs share" in page
    with pytest.raises(UserError, match="start or resume a LoRA run on it first"):
        start(alice)


def test_a_test_that_could_not_be_made_says_why(alice: Actor, worker: Worker) -> None:
    test = start(alice)
    assert fail_isolation_test(test_id=test.pk, error="internal error abc")
    assert not fail_isolation_test(test_id=test.pk, error="again")
    assert "internal error abc" in sign_in(alice).get("/settings/workers/").content.decode()


def test_rest_starts_lists_and_tells(alice: Actor, worker: Worker) -> None:
    _, secret = create_key(actor=alice, name="test")
    program = Client(headers={"X-API-Key": secret})
    place = {"worker": "w1", "base_model": "acme/Tiny"}
    made = program.post("/rest/isolation-tests", place, "application/json")
    assert made.status_code == 201
    assert made.json()["status"] == "queued"
    finish(IsolationTest.objects.get())
    path = f"/rest/isolation-tests/{made.json()['id']}"
    told: dict[str, Any] = program.get(path).json()
    assert told["is_passed"] is True
    assert [row["quantity"] for row in told["differences"]] == ["loss", "logprobs", "gradients"]
    assert program.get("/rest/isolation-tests").json() == [told]
    assert program.get("/rest/isolation-tests/iso-unknown").status_code == 404
    place["worker"] = "unknown"
    assert program.post("/rest/isolation-tests", place, "application/json").status_code == 404


def test_the_page_takes_the_same_queries_for_one_test_and_for_ten(
    alice: Actor, worker: Worker
) -> None:
    finish(start(alice))
    few = count_queries(sign_in(alice), "/settings/workers/")
    for _ in range(12):
        finish(start(alice))
    assert count_queries(sign_in(alice), "/settings/workers/") == few


def test_what_a_lost_worker_had_to_do_is_settled(alice: Actor, worker: Worker) -> None:
    test = start(alice)
    settle_isolation_tests()
    test.refresh_from_db()
    assert test.status == "queued"
    begin_isolation_test(test_id=test.pk, worker="w1")
    settle_isolation_tests()
    test.refresh_from_db()
    assert test.status == "running"
    Worker.objects.update(started_at=now())  # another process of the same name
    settle_isolation_tests()
    test.refresh_from_db()
    assert test.status == "failed"
    assert "was lost" in test.error
    waiting = start(alice)
    Worker.objects.all().delete()
    settle_isolation_tests()
    waiting.refresh_from_db()
    assert waiting.status == "failed"


def test_only_the_newest_are_kept(
    alice: Actor, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "KEPT", 3)
    for _ in range(5):
        finish(start(alice))
    assert IsolationTest.objects.count() == 3
