"""Pages of deployments: what is served, and the proof of it."""

import pytest
from django.test import Client

from tests.webapp.cast import count_queries, make_viewer, sign_in
from tests.webapp.deployments.conftest import (
    make_checkpoint,
    make_deployment,
    make_load,
    read,
)
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.deployments.models import Deployment, HotLoad
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run

Status = Deployment.Status


def test_an_empty_list_says_what_a_deployment_is(browser: Client) -> None:
    page = read(browser, "/deployments/")
    assert "Nothing is served yet" in page
    assert 'href="/deployments/new/"' in page


def test_the_list_takes_the_same_queries_for_one_deployment_and_for_five(
    alice: Actor, browser: Client, run: Run, deployment: Deployment
) -> None:
    once = count_queries(browser, "/deployments/")
    for number in range(4):
        checkpoint = make_checkpoint(run, name=f"c{number}")
        load = make_load(checkpoint)
        HotLoad.objects.filter(pk=load.pk).update(
            deployment=make_deployment(alice, checkpoint, f"d{number}")
        )
    # The loads of all of them are one query, which an empty list of loads takes as well.
    assert count_queries(browser, "/deployments/") == once


def test_a_checkpoint_is_served_under_a_name(browser: Client, checkpoint: Checkpoint) -> None:
    page = read(browser, f"/deployments/new/?checkpoint={checkpoint.pk}")
    assert f'value="{checkpoint.pk}" selected' in page
    answer = browser.post(
        "/deployments/new/", {"name": "calls", "target": checkpoint.pk, "num_replicas": "2"}
    )
    made = Deployment.objects.get()
    assert answer.headers["Location"] == f"/deployments/{made.pk}/"
    assert (made.checkpoint, made.status) == (checkpoint, Status.LOADING)
    assert made.num_replicas == 2
    assert "every 2s" in read(browser, answer.headers["Location"])


def test_a_base_model_is_served_as_it_is(browser: Client, base_model: BaseModel) -> None:
    target = {"name": "plain", "target": base_model.pk, "num_replicas": "1"}
    browser.post("/deployments/new/", target)
    made = Deployment.objects.get()
    assert (made.checkpoint, made.base_model) == (None, base_model)
    assert "there is nothing to prove" in read(browser, f"/deployments/{made.pk}/")


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("name", "", "A deployment needs a name."),
        ("name", "calls", "There is a deployment named calls already"),
        ("num_replicas", "", "Say how many replicas"),
        ("num_replicas", "17", "A deployment has between 0 and 16 replicas, not 17."),
    ],
)
def test_what_is_wrong_stands_beside_its_field(
    browser: Client, deployment: Deployment, field: str, value: str, complaint: str
) -> None:
    data = {"name": "more", "target": deployment.checkpoint_id, "num_replicas": "1"}
    answer = browser.post("/deployments/new/", data | {field: value})
    assert answer.status_code == 400
    assert complaint in answer.content.decode()
    assert f'id="id_{field}-error"' in answer.content.decode()
    assert Deployment.objects.count() == 1


def test_another_projects_checkpoint_is_no_choice(charlie: Actor, checkpoint: Checkpoint) -> None:
    answer = sign_in(charlie).post("/deployments/new/", {"name": "x", "target": checkpoint.pk})
    assert answer.status_code == 400
    assert not Deployment.objects.exists()


def test_the_proof_is_said_in_words_and_token_by_token(
    browser: Client, deployment: Deployment
) -> None:
    assert deployment.checkpoint is not None
    make_load(deployment.checkpoint, deployment=deployment)
    page = read(browser, f"/deployments/{deployment.pk}/")
    assert "Trainer and server agree on 2 tokens to 2e-6 nats; 1e-3 is allowed." in page
    assert "The 2 tokens of the proof" in page
    assert "-2.000002" in page
    assert page.count("largest</span>") == 1
    assert "/v1/chat/completions" in page
    assert "$TINKER_API_KEY" in page


def test_a_load_that_does_not_agree_is_said_to_serve_nothing(
    browser: Client, deployment: Deployment
) -> None:
    assert deployment.checkpoint is not None
    make_load(deployment.checkpoint, status=HotLoad.Status.FAILED, max_difference=0.31)
    page = read(browser, f"/deployments/{deployment.pk}/")
    assert "differ on 2 tokens by up to 0.31 nats" in page
    assert "Nothing is served as this checkpoint." in page


def test_each_load_is_a_row(browser: Client, deployment: Deployment) -> None:
    assert deployment.checkpoint is not None
    make_load(deployment.checkpoint, 1, status=HotLoad.Status.LOST)
    make_load(deployment.checkpoint, 2)
    page = read(browser, f"/deployments/{deployment.pk}/")
    assert page.count(f'"mono">{deployment.checkpoint_id}-') == 3  # the proof names one too
    assert "let go" in page


def test_a_change_to_nothing_is_refused_beside_the_field(
    browser: Client, deployment: Deployment
) -> None:
    answer = browser.post(f"/deployments/{deployment.pk}/change/", {"checkpoint": ""})
    assert answer.status_code == 400
    assert "Choose a checkpoint or the base model." in answer.content.decode()


def test_stop_stops_and_start_starts_again(browser: Client, deployment: Deployment) -> None:
    url = f"/deployments/{deployment.pk}/"
    browser.post(f"{url}stop/")
    deployment.refresh_from_db()
    assert deployment.status == Status.STOPPED
    page = " ".join(read(browser, url).split())
    assert "> Start </button>" in page
    assert "It answers nobody until it is started" in page
    browser.post(f"{url}change/", {"checkpoint": deployment.checkpoint_id})
    deployment.refresh_from_db()
    assert deployment.status == Status.LOADING


def test_another_projects_deployment_does_not_exist(charlie: Actor, deployment: Deployment) -> None:
    stranger = sign_in(charlie)
    url = f"/deployments/{deployment.pk}/"
    assert stranger.get(url).status_code == 404
    assert [
        stranger.post(f"{url}{verb}/").status_code
        for verb in ("change", "stop", "scale", "roll-back")
    ] == [404] * 4


def test_a_viewer_changes_nothing(alice: Actor, deployment: Deployment) -> None:
    viewer = sign_in(make_viewer(alice))
    page = read(viewer, f"/deployments/{deployment.pk}/")
    for button in ("Promote a checkpoint", ">Scale</button>", "Roll back"):
        assert button not in page
    verbs = ("change", "stop", "scale", "roll-back")
    for path in ("new/", *(f"{deployment.pk}/{verb}/" for verb in verbs)):
        assert "viewer" in viewer.post(f"/deployments/{path}").content.decode()
    deployment.refresh_from_db()
    assert deployment.status == Status.READY


def test_with_nothing_to_serve_the_form_says_what_is_missing(browser: Client) -> None:
    page = browser.get("/deployments/new/").content.decode()
    assert "Nothing to serve yet" in page
    assert "manage.py model add" in page
