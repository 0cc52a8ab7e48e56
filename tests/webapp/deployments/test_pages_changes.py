"""A deployment's changes: promoted, refused, rolled back, and told in its history."""

from typing import Any

import pytest
from django.test import Client

from tests.webapp.deployments.conftest import make_checkpoint, make_load, make_replica, read
from webapp.accounts.models import Actor
from webapp.deployments import views
from webapp.deployments.models import Deployment, HotLoad
from webapp.deployments.services import change_checkpoint, settle_change
from webapp.runs.models import Run


def test_a_checkpoint_is_promoted_while_the_old_one_answers(
    browser: Client, run: Run, deployment: Deployment
) -> None:
    better = make_checkpoint(run, name="better")
    url = f"/deployments/{deployment.pk}/"
    assert f'value="{better.pk}"' in read(browser, url)
    browser.post(f"{url}change/", {"checkpoint": better.pk, "transition": "sync"})
    deployment.refresh_from_db()
    change = deployment.changes.get()
    assert (deployment.status, change.checkpoint, change.transition) == ("ready", better, "sync")
    page = read(browser, url)
    assert "waits for a sampling server" in page
    assert "answers until then." in page
    assert "every 2s" in page

    replica = make_replica()
    make_load(better, status=HotLoad.Status.LOADING, replica=replica)
    assert "vllm-tiny is loading it, and then proves it" in read(browser, url)


@pytest.mark.parametrize("query", ["find_pending", "list_changes", "find_deployment", "list_loads"])
def test_a_change_that_is_served_while_its_page_is_read_is_not_missed(
    browser: Client,
    alice: Actor,
    run: Run,
    deployment: Deployment,
    monkeypatch: pytest.MonkeyPatch,
    query: str,
) -> None:
    """The hint of it comes before the page listens: it shows the new weights, or looks again."""
    better = make_checkpoint(run, name="better")
    change = change_checkpoint(actor=alice, deployment=deployment, checkpoint=better)
    ask = getattr(views, query)

    def ask_late(*asked: Any) -> Any:
        settle_change(change)
        return ask(*asked)

    monkeypatch.setattr(views, query, ask_late)
    page = read(browser, f"/deployments/{deployment.pk}/")
    answers = page[page.index("<dt>Serves</dt>") : page.index("<dt>Digest</dt>")]
    assert f"/checkpoints/{better.pk}/" in answers or "every 2s" in page


def test_a_promotion_that_failed_says_what_differs_and_that_the_old_one_stays(
    browser: Client, alice: Actor, run: Run, deployment: Deployment
) -> None:
    better = make_checkpoint(run, name="better")
    change = change_checkpoint(actor=alice, deployment=deployment, checkpoint=better)
    settle_change(change, error="The log-probabilities differ by up to 0.31 nats.")
    page = read(browser, f"/deployments/{deployment.pk}/")
    words = " ".join(page.split())
    assert "first / better is not served.</strong> The log-probabilities differ" in words
    assert "still answers." in words
    assert "every 2s" not in page


def test_one_click_goes_back_to_what_was_served_before(
    browser: Client, alice: Actor, run: Run, deployment: Deployment
) -> None:
    url = f"/deployments/{deployment.pk}/"
    assert "Roll back to" not in read(browser, url)
    first = deployment.checkpoint
    for checkpoint in (first, make_checkpoint(run, name="better")):
        settle_change(change_checkpoint(actor=alice, deployment=deployment, checkpoint=checkpoint))
        deployment.refresh_from_db()
    assert "Roll back to step-10" in " ".join(read(browser, url).split())
    browser.post(f"{url}roll-back/")
    pending = deployment.changes.get(status="loading")
    assert (pending.checkpoint, pending.user) == (first, alice.user)
    assert "Roll back to" not in read(browser, url)  # not while another change is under way


def test_the_way_back_may_be_the_base_model(
    browser: Client, alice: Actor, deployment: Deployment
) -> None:
    first = deployment.checkpoint
    for checkpoint in (None, first):
        settle_change(change_checkpoint(actor=alice, deployment=deployment, checkpoint=checkpoint))
        deployment.refresh_from_db()
    url = f"/deployments/{deployment.pk}/"
    assert "Roll back to the base model" in " ".join(read(browser, url).split())
    browser.post(f"{url}roll-back/")
    assert deployment.changes.get(status="loading").checkpoint is None


def test_the_history_says_who_when_and_what_came_of_it(
    browser: Client, alice: Actor, run: Run, deployment: Deployment
) -> None:
    better = make_checkpoint(run, name="better")
    change = change_checkpoint(
        actor=alice, deployment=deployment, checkpoint=better, identity="snapshot-7"
    )
    load = make_load(better)
    settle_change(change, load=load, pause_milliseconds=12.0)
    worse = make_checkpoint(run, name="worse")
    failed = change_checkpoint(actor=alice, deployment=deployment, checkpoint=worse)
    settle_change(failed, error="The files were changed on disk.")
    deployment.refresh_from_db()
    page = read(browser, f"/deployments/{deployment.pk}/")
    history = page[page.index('id="history"') :]
    assert history.index("first / worse") < history.index("first / better")
    for said in ("served</span>", "failed</span>", "alice", "snapshot-7", "12 ms", "2e-6"):
        assert said in history
    assert "The files were changed on disk." in history


def test_a_checkpoint_can_be_promoted_where_a_deployment_is_there_already(
    browser: Client, run: Run, deployment: Deployment
) -> None:
    better = make_checkpoint(run, name="better")
    page = read(browser, f"/deployments/new/?checkpoint={better.pk}")
    link = f"/deployments/{deployment.pk}/?checkpoint={better.pk}#promote"
    assert f'href="{link}"' in page
    assert f'value="{better.pk}" selected' in read(browser, link)
    served = read(browser, f"/deployments/new/?checkpoint={deployment.checkpoint_id}")
    assert "Or promote it" not in served
