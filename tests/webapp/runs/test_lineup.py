"""What is ahead of an operation, and why a run does not go on: counted from rows, read at once."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils.timezone import now
from pytest_django import DjangoAssertNumQueries

from tests.webapp.cast import make_actor, make_base_model, make_run, sign_in
from webapp.accounts.models import Actor, Project
from webapp.accounts.services import create_key
from webapp.fleet.capacity import Capacity
from webapp.fleet.models import BaseModel, Worker
from webapp.runs import queue
from webapp.runs.lineup import Ahead, Lineup, read_lineup
from webapp.runs.models import Run
from webapp.runs.standing import explain_wait

pytestmark = pytest.mark.django_db


@pytest.fixture
def base_model(db: None) -> BaseModel:
    return make_base_model("acme/Tiny")


@pytest.fixture
def alice() -> Actor:
    return make_actor()


def ask(run: Run, *tokens: int, first: int = 0) -> None:
    for seq, num_tokens in enumerate(tokens, start=first):
        queue.submit_operation(
            run, seq=seq, kind="forward_backward", payload=bytes([seq]), num_tokens=num_tokens
        )


def open_run(actor: Actor, base_model: BaseModel, *tokens: int) -> Run:
    """Leased by `w`, with a forward_backward for each number of tokens."""
    run = make_run(actor, base_model)
    queue.lease_run(run, worker=queue.name_holder("w", "1"))
    ask(run, *tokens)
    return run


def look() -> Lineup:
    return read_lineup(Capacity())


def test_behind_its_own_operations_it_says_how_many(alice: Actor, base_model: BaseModel) -> None:
    run = open_run(alice, base_model, 100, 100, 100, 100)
    assert look().explain(run.pk, 0).reason == ""
    assert look().explain(run.pk, 1).ahead == Ahead(own=1, num_tokens=100)
    wait = look().explain(run.pk, 3)
    assert wait.reason == "3 operations of this run are ahead (about 300 tokens)"
    assert not wait.is_stopped


def test_of_others_counts_what_goes_through_meanwhile(alice: Actor, base_model: BaseModel) -> None:
    run = open_run(alice, base_model, 100)
    open_run(alice, base_model, 1000, 1000)
    carol = make_actor("carol")
    open_run(carol, base_model, 50)
    wait = look().explain(run.pk)
    assert wait.ahead == Ahead(project=1, others=1, num_tokens=150)
    assert wait.reason == (
        "2 operations are ahead (1 of this project, 1 of other projects, about 150 tokens)"
    )
    Project.objects.filter(pk=alice.project.pk).update(share=4)
    assert look().explain(run.pk).ahead.num_tokens == 125


def test_who_is_served_by_another_worker_or_waits_for_a_number_is_not_ahead(
    alice: Actor, base_model: BaseModel
) -> None:
    run = open_run(alice, base_model, 100)
    elsewhere = open_run(alice, base_model, 100)
    Run.objects.filter(pk=elsewhere.pk).update(worker=queue.name_holder("other", "1"))
    gap = make_run(alice, base_model)
    queue.lease_run(gap, worker=queue.name_holder("w", "1"))
    ask(gap, 100, first=3)
    over = open_run(alice, base_model, 100)
    Run.objects.filter(pk=over.pk).update(status=Run.Status.DONE)
    assert look().explain(run.pk).reason == ""


def test_a_number_that_has_not_arrived_is_named(alice: Actor, base_model: BaseModel) -> None:
    run = open_run(alice, base_model)
    ask(run, 10, 10, first=12)
    wait = look().explain(run.pk)
    assert wait.reason == "waiting for seq_id 0, which has not arrived"
    assert wait.is_stopped
    Run.objects.filter(pk=run.pk).update(done_seq=10)
    assert look().explain(run.pk).reason == "waiting for seq_id 11, which has not arrived"


def test_a_worker_that_was_lost_with_work_begun_is_named(
    alice: Actor, base_model: BaseModel
) -> None:
    run = open_run(alice, base_model, 10)
    assert queue.next_operations(run, worker=run.worker)
    assert look().explain(run.pk).reason == ""
    Run.objects.update(lease_until=now() - timedelta(seconds=1))
    wait = look().explain(run.pk)
    assert wait.reason == "the worker w is lost: another one takes the run over"
    assert wait.is_stopped


def test_what_its_worker_brings_into_memory_comes_first(
    alice: Actor, base_model: BaseModel
) -> None:
    run = open_run(alice, base_model, 10, 10)
    capacity = Capacity(loaders={"w": "acme/Other"})
    wait = read_lineup(capacity).explain(run.pk, 1)
    assert wait.reason == "the worker w is loading acme/Other"
    assert wait.ahead.own == 1


def test_a_run_that_was_served_just_now_is_not_said_to_wait(
    alice: Actor, base_model: BaseModel
) -> None:
    Worker.objects.create(name="w", kind="gpu")
    run = open_run(alice, base_model, 10)
    open_run(alice, base_model, 10)
    assert explain_wait(run) == ""
    long_ago = now() - timedelta(minutes=1)
    run.operations.update(created_at=long_ago)
    Run.objects.update(last_request_at=long_ago)
    assert explain_wait(run) == "1 operation of this project is ahead (about 10 tokens)"


def test_all_lines_are_read_in_one_query_and_unknown_runs_do_not_wait(
    alice: Actor, base_model: BaseModel, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    runs = [open_run(alice, base_model, 10, 10) for _ in range(5)]
    with django_assert_num_queries(1):
        lineup = look()
        waits = [lineup.explain(run.pk, seq) for run in runs for seq in range(2)]
    assert len(waits) == 10
    assert lineup.explain("run-unknown").reason == ""


def test_rest_and_the_list_of_runs_say_it(alice: Actor, base_model: BaseModel) -> None:
    run = open_run(alice, base_model, 10, 10)
    ask(run, 5, first=4)
    calm = make_run(alice, base_model)
    theirs = open_run(make_actor("carol"), base_model, 10)
    _, secret = create_key(actor=alice, name="test")
    program = Client(headers={"X-API-Key": secret})
    expected = {
        "run": run.pk,
        "reason": "waiting for a gpu worker: none is alive",
        "is_stopped": True,
        "operations_ahead": 1,
        "tokens_ahead": 8,
    }
    assert program.get(f"/rest/runs/{run.pk}/wait").json() == expected
    assert program.get("/rest/runs/waiting").json() == [expected]
    assert program.get(f"/rest/runs/{calm.pk}/wait").json()["reason"] == ""
    assert program.get(f"/rest/runs/{theirs.pk}/wait").status_code == 404
    page = sign_in(alice).get("/runs/").content.decode()
    assert page.count(">waiting for a gpu worker: none is alive<") == 1
