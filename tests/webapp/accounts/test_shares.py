"""A project's share of the workers: who sees it, who changes it, and what is left of a change."""

import pytest
from django.test import Client

from tests.webapp.cast import make_actor, sign_in
from webapp.accounts.models import Actor, AuditEntry, Project
from webapp.accounts.services import change_share, create_key
from webapp.core.errors import NotFound, UserError

pytestmark = pytest.mark.django_db


def make_operator(username: str = "olga") -> Actor:
    actor = make_actor(username)
    actor.user.is_staff = True
    actor.user.save()
    return actor


def read_share(actor: Actor) -> float:
    return Project.objects.get(pk=actor.project.pk).share


def test_an_operator_changes_the_share_of_any_project_and_the_log_says_so() -> None:
    olga, alice = make_operator(), make_actor()
    for share in (2.5, 2.5):
        answer = sign_in(olga).post(
            "/projects/share/", {"project": alice.project.pk, "share": share}
        )
        assert answer["Location"] == "/settings/workers/"
    assert read_share(alice) == 2.5
    (entry,) = AuditEntry.objects.filter(event="project_share_changed")
    assert (entry.project, entry.user) == (alice.project, olga.user)
    assert entry.details == {"before": 1.0, "share": 2.5}


def test_an_owner_who_is_no_operator_reads_only_her_own_and_changes_none() -> None:
    alice = make_actor()
    make_actor("carol")
    browser = sign_in(alice)
    page = browser.get("/settings/workers/").content.decode()
    assert "Shares" in page
    assert "carol" not in page
    assert "/projects/share/" not in page
    answer = browser.post("/projects/share/", {"project": alice.project.pk, "share": 100})
    assert answer.status_code == 400
    assert "Only an operator" in answer.content.decode()
    assert read_share(alice) == 1


@pytest.mark.parametrize("share", ["0", "-1", "1e9", "nan", "inf", "much"])
def test_a_share_that_is_none_is_refused(share: str) -> None:
    olga = make_operator()
    answer = sign_in(olga).post("/projects/share/", {"project": olga.project.pk, "share": share})
    assert answer.status_code == 400
    assert "A share is a number" in answer.content.decode()
    assert read_share(olga) == 1


def test_an_unknown_project_has_no_share() -> None:
    with pytest.raises(NotFound):
        change_share(actor=make_operator(), project_id="prj-unknown", share=2)


def test_rest_reads_and_changes_shares() -> None:
    olga, alice = make_operator(), make_actor()
    _, secret = create_key(actor=olga, name="test")
    operator = Client(headers={"X-API-Key": secret})
    _, secret = create_key(actor=alice, name="test")
    program = Client(headers={"X-API-Key": secret})
    path = f"/rest/shares/{alice.project.pk}"
    answer = operator.put(path, {"share": 4}, "application/json")
    assert answer.json() == {"id": alice.project.pk, "name": "alice's project", "share": 4.0}
    assert {row["id"] for row in operator.get("/rest/shares").json()} == {
        olga.project.pk,
        alice.project.pk,
    }
    assert program.get("/rest/shares").json() == [answer.json()]
    assert program.put(path, {"share": 9}, "application/json").status_code == 400
    assert operator.put(path, {"share": "x"}, "application/json").status_code == 400
    assert read_share(alice) == 4


def test_a_service_says_who_may() -> None:
    alice = make_actor()
    with pytest.raises(UserError, match="Only an operator"):
        change_share(actor=alice, project_id=alice.project.pk, share=2)
