"""A role is one of a project: the row's project is asked, not the current one."""

import pytest
from django.test import Client

from tests.webapp.cast import make_actor, make_base_model, make_run, make_viewer, sign_in
from tests.webapp.deployments.conftest import make_checkpoint
from webapp.accounts.middleware import PROJECT_IN_SESSION
from webapp.accounts.models import Actor, Membership, Role, User
from webapp.accounts.permissions import check_can_write
from webapp.accounts.services import create_key, create_project, find_actor_of_key
from webapp.core.errors import NotFound
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.deployments.models import Deployment, SamplingCall
from webapp.deployments.services import ask
from webapp.evals.models import EvalSuite, Evaluation
from webapp.evals.services import request_evaluation

pytestmark = pytest.mark.django_db


def open_both() -> tuple[Actor, Client]:
    """Alice, whose project Vera reads, and Vera's browser, which is in a project of her own."""
    alice = make_actor()
    vera = make_viewer(alice)
    own = create_project(user=vera.user, name="Vera's")
    browser = sign_in(vera)
    session = browser.session
    session[PROJECT_IN_SESSION] = own.pk
    session.save()
    return alice, browser


def make_suite(alice: Actor) -> EvalSuite:
    dataset = Dataset.objects.create(project=alice.project, name="sums")
    version = DatasetVersion.objects.create(
        project=alice.project, dataset=dataset, number=1, status=DatasetVersion.Status.READY
    )
    return EvalSuite.objects.create(
        project=alice.project,
        name="sums",
        dataset_version=version,
        status=EvalSuite.Status.READY,
        graders=[{"name": "contains"}],
    )


def refused(browser: Client, url: str, **fields: str) -> bool:
    answer = browser.post(url, fields)
    return answer.status_code == 400 and "viewer" in answer.content.decode()


def test_an_owner_elsewhere_does_not_steer_a_run_that_she_may_only_read() -> None:
    alice, browser = open_both()
    run = make_run(alice)
    assert browser.get(f"/runs/{run.pk}/").status_code == 200
    assert refused(browser, f"/runs/{run.pk}/actions/stop/")
    assert refused(browser, f"/runs/{run.pk}/learning-rate/", learning_rate="0.1")
    run.refresh_from_db()
    assert run.status == "running"


def test_an_owner_elsewhere_does_not_change_what_is_served_that_she_may_only_read() -> None:
    alice, browser = open_both()
    checkpoint = make_checkpoint(make_run(alice))
    deployment = Deployment.objects.create(
        project=alice.project, name="bot", base_model=checkpoint.base_model, checkpoint=checkpoint
    )
    call = ask(
        actor=alice, base_model=checkpoint.base_model, messages=[{"role": "user", "content": "1"}]
    )
    assert refused(browser, f"/deployments/{deployment.pk}/stop/")
    assert refused(browser, f"/deployments/{deployment.pk}/change/", checkpoint=checkpoint.pk)
    assert refused(browser, f"/playground/answers/{call.pk}/cancel/")
    assert refused(browser, f"/checkpoints/{checkpoint.pk}/keep/")
    assert refused(browser, f"/checkpoints/{checkpoint.pk}/delete/")
    assert Deployment.objects.get().status == Deployment.Status.LOADING
    assert SamplingCall.objects.get().status == SamplingCall.Status.QUEUED


def test_an_owner_elsewhere_does_not_touch_rows_and_suites_that_she_may_only_read() -> None:
    alice, browser = open_both()
    suite = make_suite(alice)
    evaluation = request_evaluation(actor=alice, suite=suite, base_model=make_base_model())
    version = suite.dataset_version
    assert version is not None
    DatasetVersion.objects.update(status=DatasetVersion.Status.NEEDS_DECISION)
    assert refused(browser, f"/evals/{evaluation.pk}/cancel/")
    assert refused(browser, f"/datasets/versions/{version.pk}/decide/", keep_valid="1")
    assert refused(browser, f"/datasets/versions/{version.pk}/delete/")
    assert Evaluation.objects.get().status == Evaluation.Status.QUEUED


def test_an_owner_elsewhere_revokes_no_key_of_a_project_that_she_may_only_read() -> None:
    alice, browser = open_both()
    key, _ = create_key(actor=alice, name="laptop")
    assert refused(browser, f"/settings/keys/{key.pk}/revoke/")
    key.refresh_from_db()
    assert key.revoked_at is None


def test_who_is_in_no_project_of_a_row_may_not_even_know_of_it() -> None:
    with pytest.raises(NotFound):
        check_can_write(make_actor("carol"), project_id=make_actor().project.pk)


def test_an_evaluation_asks_checkpoints_of_its_suites_project() -> None:
    alice = make_actor()
    other = create_project(user=alice.user, name="Other")
    theirs = make_checkpoint(make_run(Actor(user=alice.user, project=other, role=alice.role)))
    with pytest.raises(NotFound):
        request_evaluation(actor=alice, suite=make_suite(alice), checkpoint=theirs)


@pytest.mark.parametrize("leaves", ["the project", "the installation"])
def test_the_key_of_who_has_left_opens_nothing(leaves: str) -> None:
    alice = make_actor()
    _, secret = create_key(actor=alice, name="laptop")
    assert find_actor_of_key(secret) is not None
    if leaves == "the project":
        Membership.objects.filter(user=alice.user).delete()
    else:
        User.objects.filter(pk=alice.user.pk).update(is_active=False)
    assert find_actor_of_key(secret) is None
    assert Client(headers={"X-API-Key": secret}).get("/rest/me").status_code == 401


def test_a_key_that_was_made_by_a_member_who_became_a_viewer_only_reads() -> None:
    alice = make_actor()
    _, secret = create_key(actor=alice, name="laptop")
    Membership.objects.update(role=Role.VIEWER)
    program = Client(headers={"X-API-Key": secret})
    assert program.get("/rest/me").json()["role"] == "viewer"
    assert (
        program.post("/rest/keys", {"name": "x"}, content_type="application/json").status_code
        == 403
    )
    answer = program.post("/api/v1/create_session", {}, content_type="application/json")
    assert answer.status_code == 403
