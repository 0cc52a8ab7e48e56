"""What a deployment serves changes when the new weights are proven, and not before."""

import pytest
from django.utils.timezone import now

from tests.webapp.deployments.conftest import make_checkpoint
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import delete_checkpoint
from webapp.core.errors import NotFound, UserError
from webapp.deployments import services
from webapp.deployments.loads import begin_load
from webapp.deployments.models import Deployment, DeploymentChange, HotLoad
from webapp.runs.models import Run

Status = DeploymentChange.Status


@pytest.fixture
def deployment(alice: Actor, checkpoint: Checkpoint) -> Deployment:
    """Which serves its first checkpoint."""
    deployment = services.create_deployment(actor=alice, name="support", checkpoint=checkpoint)
    (first,) = services.list_changes()
    services.settle_change(first)
    deployment.refresh_from_db()
    return deployment


@pytest.fixture
def newer(run: Run) -> Checkpoint:
    return make_checkpoint(run, name="step-20")


def change_to(
    deployment: Deployment, alice: Actor, checkpoint: Checkpoint | None
) -> DeploymentChange:
    return services.change_checkpoint(actor=alice, deployment=deployment, checkpoint=checkpoint)


def read_served(deployment: Deployment) -> tuple[str, Checkpoint | None]:
    deployment.refresh_from_db()
    return deployment.status, deployment.checkpoint


def test_the_first_checkpoint_is_a_change_too_and_its_maker_is_noted(
    deployment: Deployment, alice: Actor, checkpoint: Checkpoint
) -> None:
    first = deployment.changes.get()
    assert (first.status, first.checkpoint, first.user) == (Status.SERVED, checkpoint, alice.user)
    assert first.ended_at is not None
    assert read_served(deployment) == (Deployment.Status.READY, checkpoint)


def test_the_old_checkpoint_is_served_until_the_new_one_is_proven(
    deployment: Deployment, alice: Actor, checkpoint: Checkpoint, newer: Checkpoint
) -> None:
    change = change_to(deployment, alice, newer)
    assert change.previous == checkpoint
    assert read_served(deployment) == (Deployment.Status.READY, checkpoint)
    load = begin_load(newer, server="s/1")
    assert services.settle_change(change, load=load, pause_milliseconds=0.0)
    assert read_served(deployment) == (Deployment.Status.READY, newer)
    change.refresh_from_db()
    assert (change.status, change.hot_load, change.pause_milliseconds) == (Status.SERVED, load, 0)
    assert HotLoad.objects.get().deployment == deployment


def test_a_change_that_fails_leaves_everything_as_it_was(
    deployment: Deployment, alice: Actor, checkpoint: Checkpoint, newer: Checkpoint
) -> None:
    change = change_to(deployment, alice, newer)
    services.settle_change(change, error="It differs.")
    assert read_served(deployment) == (Deployment.Status.READY, checkpoint)
    assert deployment.error == ""
    change.refresh_from_db()
    assert (change.status, change.error) == (Status.FAILED, "It differs.")


def test_a_deployment_that_served_nothing_fails_with_its_first_checkpoint(
    alice: Actor, checkpoint: Checkpoint
) -> None:
    deployment = services.create_deployment(actor=alice, name="support", checkpoint=checkpoint)
    (first,) = services.list_changes()
    services.settle_change(first, error="It differs.")
    assert read_served(deployment) == (Deployment.Status.FAILED, checkpoint)
    assert deployment.error == "It differs."


def test_a_newer_change_supersedes_one_that_still_loads(
    deployment: Deployment, alice: Actor, run: Run, newer: Checkpoint
) -> None:
    newest = make_checkpoint(run, name="step-30")
    overtaken, last = (change_to(deployment, alice, each) for each in (newer, newest))
    assert services.list_changes() == [last]
    assert not services.settle_change(overtaken)
    assert services.settle_change(last)
    assert read_served(deployment)[1] == newest
    overtaken.refresh_from_db()
    assert overtaken.status == Status.SUPERSEDED


def test_a_deployment_that_was_never_ready_begins_with_the_newest_wish(
    alice: Actor, checkpoint: Checkpoint, newer: Checkpoint
) -> None:
    deployment = services.create_deployment(actor=alice, name="support", checkpoint=checkpoint)
    change_to(deployment, alice, newer)
    assert read_served(deployment) == (Deployment.Status.LOADING, newer)


def test_a_failed_deployment_starts_again_with_what_is_chosen(
    alice: Actor, checkpoint: Checkpoint, newer: Checkpoint
) -> None:
    deployment = services.create_deployment(actor=alice, name="support", checkpoint=checkpoint)
    services.settle_change(services.list_changes()[0], error="It differs.")
    change = change_to(deployment, alice, newer)
    assert read_served(deployment) == (Deployment.Status.LOADING, newer)
    assert deployment.error == ""
    assert change.previous == checkpoint


def test_stopping_ends_a_change_that_waits(
    deployment: Deployment, alice: Actor, newer: Checkpoint
) -> None:
    change = change_to(deployment, alice, newer)
    services.stop_deployment(actor=alice, deployment=deployment)
    assert services.list_changes() == []
    assert not services.settle_change(change)
    assert deployment.status == Deployment.Status.STOPPED


def test_rolling_back_serves_what_was_served_before(
    deployment: Deployment, alice: Actor, checkpoint: Checkpoint, newer: Checkpoint
) -> None:
    services.settle_change(change_to(deployment, alice, newer))
    deployment.refresh_from_db()
    back = services.roll_back(actor=alice, deployment=deployment)
    assert (back.checkpoint, back.previous) == (checkpoint, newer)
    services.settle_change(back)
    assert read_served(deployment)[1] == checkpoint
    history = [(each.checkpoint, each.status) for each in deployment.changes.all()]
    assert history == [(each, Status.SERVED) for each in (checkpoint, newer, checkpoint)]


def test_what_failed_is_no_place_to_roll_back_to(
    deployment: Deployment, alice: Actor, newer: Checkpoint
) -> None:
    services.settle_change(change_to(deployment, alice, newer), error="It differs.")
    with pytest.raises(UserError, match="there is no way back"):
        services.roll_back(actor=alice, deployment=deployment)


def test_rolling_back_to_what_was_deleted_is_refused_by_name(
    deployment: Deployment, alice: Actor, checkpoint: Checkpoint, newer: Checkpoint
) -> None:
    services.settle_change(change_to(deployment, alice, newer))
    deployment.refresh_from_db()
    Checkpoint.objects.filter(pk=checkpoint.pk).update(deleted_at=now())
    with pytest.raises(UserError, match="step-10 was deleted"):
        services.roll_back(actor=alice, deployment=deployment)


def test_a_checkpoint_that_is_about_to_be_served_cannot_be_deleted(
    deployment: Deployment, alice: Actor, newer: Checkpoint
) -> None:
    change = change_to(deployment, alice, newer)
    with pytest.raises(UserError, match="in use by a deployment"):
        delete_checkpoint(actor=alice, checkpoint=newer)
    services.settle_change(change, error="It differs.")
    delete_checkpoint(actor=alice, checkpoint=newer)


def test_another_projects_deployment_is_not_there_to_be_changed(
    deployment: Deployment, charlie: Actor, checkpoint: Checkpoint, newer: Checkpoint
) -> None:
    with pytest.raises(NotFound):
        change_to(deployment, charlie, newer)
    assert services.list_changes() == []
    assert read_served(deployment)[1] == checkpoint


def test_a_transition_is_one_of_two_words(
    deployment: Deployment, alice: Actor, newer: Checkpoint
) -> None:
    with pytest.raises(UserError, match="async, sync, or left out"):
        services.change_checkpoint(
            actor=alice, deployment=deployment, checkpoint=newer, transition="slowly"
        )


def test_a_server_that_starts_anew_proves_what_is_served_and_not_what_is_wished(
    deployment: Deployment, alice: Actor, checkpoint: Checkpoint, newer: Checkpoint
) -> None:
    change_to(deployment, alice, newer)
    services.reload_deployments()
    (loading,) = services.list_loading()
    assert loading.checkpoint == checkpoint
    change = change_to(deployment, alice, checkpoint)
    assert services.list_loading() == []
    assert services.list_changes() == [change]
