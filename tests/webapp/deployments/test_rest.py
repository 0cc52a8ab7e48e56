"""REST of deployments: made, promoted, rolled back, scaled, and told."""

from typing import Any

import pytest
from django.test import Client

from tests.webapp.cast import make_viewer
from tests.webapp.deployments.conftest import make_checkpoint, make_load, make_replica
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import rest
from webapp.deployments.models import Deployment
from webapp.deployments.services import change_checkpoint, settle_change
from webapp.runs.models import Run


def make_program(actor: Actor) -> Client:
    _, secret = create_key(actor=actor, name="test")
    return Client(headers={"X-API-Key": secret})


@pytest.fixture
def program(alice: Actor) -> Client:
    return make_program(alice)


def post(client: Client, path: str, body: Any = None, *, key: str = "") -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    return client.post(path, body or {}, content_type="application/json", headers=headers)


def test_a_deployment_is_made_with_its_number_of_replicas(
    program: Client, checkpoint: Checkpoint
) -> None:
    body = {"name": "calls", "checkpoint": checkpoint.pk, "num_replicas": 2}
    made = post(program, "/rest/deployments", body).json()
    assert (made["num_replicas"], made["status"]) == (2, "loading")
    assert made["pending_change"]["checkpoint"] == checkpoint.pk
    refused = post(program, "/rest/deployments", body | {"name": "more", "num_replicas": 17})
    assert refused.status_code == 400
    assert refused.json()["error"] == {
        "message": "A deployment has between 0 and 16 replicas, not 17.",
        "field": "num_replicas",
    }


def test_a_promotion_is_a_change_that_is_pending_until_it_is_proven(
    program: Client, alice: Actor, run: Run, deployment: Deployment
) -> None:
    better = make_checkpoint(run, name="better")
    url = f"/rest/deployments/{deployment.pk}"
    body = {"checkpoint": better.pk, "transition": "sync"}
    answer = post(program, f"{url}/promote", body, key="once")
    assert answer.status_code == 202
    change = answer.json()
    assert (change["status"], change["previous"]) == ("loading", deployment.checkpoint_id)
    assert (change["transition"], change["user"]) == ("sync", "alice")
    again = post(program, f"{url}/promote", body, key="once").json()
    assert again["id"] == change["id"]
    told = program.get(url).json()
    assert (told["checkpoint"], told["status"]) == (deployment.checkpoint_id, "ready")
    assert told["pending_change"]["id"] == change["id"]

    load = make_load(better, pause_milliseconds=0.0, mean_difference=1e-7)
    settle_change(deployment.changes.get(), load=load, pause_milliseconds=3.0)
    told = program.get(url).json()
    assert (told["checkpoint"], told["pending_change"]) == (better.pk, None)
    (past,) = program.get(f"{url}/changes").json()["results"]
    assert (past["status"], past["pause_milliseconds"]) == ("served", 3.0)
    assert past["hot_load"]["mean_difference"] == 1e-7
    assert past["hot_load"]["load_milliseconds"] == 41.0


def test_nothing_is_pending_means_that_what_was_asked_for_is_told(
    program: Client,
    alice: Actor,
    run: Run,
    deployment: Deployment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Although the change is served while the answer is made."""
    better = make_checkpoint(run, name="better")
    change = change_checkpoint(actor=alice, deployment=deployment, checkpoint=better)
    find = rest.find_deployment

    def find_in_time(*asked: Any) -> Deployment:
        found = find(*asked)
        settle_change(change)
        return found

    monkeypatch.setattr(rest, "find_deployment", find_in_time)
    first, second = (program.get(f"/rest/deployments/{deployment.pk}").json() for _ in range(2))
    assert first["checkpoint"] == deployment.checkpoint_id
    assert first["pending_change"]["id"] == change.pk
    assert (second["checkpoint"], second["pending_change"]) == (better.pk, None)


def test_rolling_back_needs_something_to_go_back_to(
    program: Client, run: Run, deployment: Deployment
) -> None:
    url = f"/rest/deployments/{deployment.pk}"
    refused = post(program, f"{url}/rollback")
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == (
        "calls has served nothing else: there is no way back."
    )
    for checkpoint in (deployment.checkpoint_id, make_checkpoint(run, name="better").pk):
        post(program, f"{url}/promote", {"checkpoint": checkpoint})
        settle_change(deployment.changes.all()[0])
    back = post(program, f"{url}/rollback")
    assert (back.status_code, back.json()["checkpoint"]) == (202, deployment.checkpoint_id)


@pytest.mark.parametrize(
    ("verb", "body", "field"),
    [
        ("promote", {}, "checkpoint"),
        ("promote", {"checkpoint": "ckpt-nothing"}, ""),
        ("promote", {"checkpoint": None, "transition": "sideways"}, "transition"),
        ("scale", {}, "num_replicas"),
        ("scale", {"num_replicas": -1}, "num_replicas"),
        ("scale", {"num_replicas": "many"}, "num_replicas"),
    ],
)
def test_what_is_wrong_is_refused_by_its_field(
    program: Client, deployment: Deployment, verb: str, body: dict[str, Any], field: str
) -> None:
    answer = post(program, f"/rest/deployments/{deployment.pk}/{verb}", body)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["field"] == field
    assert not deployment.changes.exists()


def test_a_deployment_sleeps_at_zero_replicas(program: Client, deployment: Deployment) -> None:
    answer = post(program, f"/rest/deployments/{deployment.pk}/scale", {"num_replicas": 0})
    assert (answer.status_code, answer.json()["num_replicas"]) == (200, 0)


def test_replicas_say_which_engine_they_are(program: Client, deployment: Deployment) -> None:
    make_replica(stats={"running": 1})
    (told,) = program.get(f"/rest/deployments/{deployment.pk}/replicas").json()
    assert (told["engine_name"], told["stats"]) == ("vLLM 0.32.0", {"running": 1})
    assert "pid" not in told
    assert program.get("/rest/replicas").json() == [told]


def test_viewers_read_and_strangers_see_nothing(
    alice: Actor, charlie: Actor, deployment: Deployment
) -> None:
    viewer, stranger = make_program(make_viewer(alice)), make_program(charlie)
    url = f"/rest/deployments/{deployment.pk}"
    for path in (url, f"{url}/changes", f"{url}/replicas"):
        assert viewer.get(path).status_code == 200
        assert stranger.get(path).status_code == 404
    for verb in ("promote", "rollback", "scale"):
        assert post(viewer, f"{url}/{verb}").status_code == 403
        assert post(stranger, f"{url}/{verb}").status_code == 404
