"""A run that ends tells the webhooks of its project, once."""

import pytest

from tests.webapp.cast import make_actor, make_run
from webapp.accounts.models import Actor, Delivery
from webapp.accounts.webhooks import create_webhook
from webapp.runs import driving
from webapp.runs.endings import tell_end
from webapp.runs.models import Run
from webapp.runs.services import finish_client_run

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice() -> Actor:
    actor = make_actor()
    create_webhook(actor=actor, url="http://127.0.0.1:9/")
    return actor


@pytest.mark.parametrize(
    ("reason", "event", "text"),
    [
        ("success", "run.done", "The run a run is done after 3 steps."),
        ("errored", "run.failed", "The run a run failed after 3 steps. CUDA is gone."),
    ],
)
def test_a_clients_run_tells_how_it_ended(alice: Actor, reason: str, event: str, text: str) -> None:
    run = make_run(alice)
    Run.objects.update(step=3)
    for _ in range(2):
        finish_client_run(run, reason, "CUDA is gone." if reason == "errored" else "")
        tell_end(run)
    sent = Delivery.objects.get()
    assert (sent.event, sent.body["text"], sent.body["run"]) == (event, text, run.pk)


def test_one_that_was_stopped_is_no_news(alice: Actor) -> None:
    finish_client_run(make_run(alice), "interrupted")
    assert not Delivery.objects.exists()


def test_a_recipes_run_tells_its_end_and_not_its_pause(alice: Actor) -> None:
    run = make_run(alice)
    Run.objects.update(recipe="sft", driver="me")
    run.refresh_from_db()
    driving.finish_run(run, Run.Status.PAUSED)
    assert not Delivery.objects.exists()
    Run.objects.update(status=Run.Status.RUNNING, driver="me")
    driving.finish_run(run, Run.Status.FAILED, error="No row is left.", category="user")
    assert Delivery.objects.get().body["text"].endswith("after 0 steps. No row is left.")
