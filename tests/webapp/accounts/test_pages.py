"""Projects and settings in the browser."""

import pytest
from django.test import Client

from tests.webapp.cast import make_actor, make_base_model, make_viewer, sign_in
from webapp.accounts.models import ApiKey, Membership, User
from webapp.accounts.services import create_key, create_project, find_actor_of_key
from webapp.fleet.models import BaseModel
from webapp.fleet.services import register_worker
from webapp.settings import ROOT

pytestmark = pytest.mark.django_db


def test_a_new_project_becomes_the_current_one() -> None:
    alice = make_actor()
    browser = sign_in(alice)
    browser.post("/projects/new/", {"name": "Second"})
    page = browser.get("/")
    assert page.context["actor"].project.name == "Second"


def test_switching_to_a_project_of_others_is_404() -> None:
    browser, theirs = sign_in(make_actor()), make_actor("carol").project
    assert browser.post("/projects/switch/", {"project": theirs.pk}).status_code == 404


def test_the_switched_project_stays_for_the_next_page() -> None:
    alice = make_actor()
    second = create_project(user=alice.user, name="Second")
    browser = sign_in(alice)
    browser.post("/projects/switch/", {"project": second.pk})
    assert browser.get("/runs/").context["actor"].project == second


def test_a_key_is_shown_once_with_the_lines_for_the_sdk() -> None:
    browser = sign_in(make_actor())
    shown = browser.post("/settings/", {"name": "laptop"})
    secret = shown.context["secret"]
    found = find_actor_of_key(secret)
    assert found is not None
    assert found.user.username == "alice"
    assert f"export TINKER_API_KEY={secret}" in shown.content.decode()
    assert "export TINKER_BASE_URL=http://testserver" in shown.content.decode()
    other = f"fw_{secret.removeprefix('tml-')}"
    assert f"export FIREWORKS_API_KEY={other}" in shown.content.decode()
    later = browser.get("/settings/")
    assert secret not in later.content.decode()
    assert "laptop" in later.content.decode()


def test_a_key_without_a_name_is_refused_beside_the_field() -> None:
    answer = sign_in(make_actor()).post("/settings/", {"name": " "})
    assert answer.status_code == 400
    assert "name" in answer.context["form"].errors
    assert not ApiKey.objects.exists()


def test_a_revoked_key_opens_nothing_and_others_cannot_revoke_it() -> None:
    alice = make_actor()
    key, secret = create_key(actor=alice, name="laptop")
    stranger = sign_in(make_actor("carol"))
    assert stranger.post(f"/settings/keys/{key.pk}/revoke/").status_code == 404
    assert find_actor_of_key(secret) is not None
    sign_in(alice).post(f"/settings/keys/{key.pk}/revoke/")
    assert find_actor_of_key(secret) is None


def test_a_viewer_creates_no_key() -> None:
    alice = make_actor()
    browser = sign_in(alice)
    browser.force_login(make_viewer(alice).user)
    answer = browser.post("/settings/", {"name": "mine"})
    assert answer.status_code == 400
    assert not ApiKey.objects.exists()


def test_an_owner_adds_a_member_and_a_name_nobody_has_is_refused() -> None:
    alice = make_actor()
    User.objects.create_user("bob")
    browser = sign_in(alice)
    browser.post("/settings/members/", {"username": "bob", "role": "member"})
    assert Membership.objects.filter(project=alice.project, user__username="bob").exists()
    refused = browser.post("/settings/members/", {"username": "nobody", "role": "member"})
    assert refused.context["form"].errors == {"username": ["There is no user named nobody."]}


def test_only_an_operator_adds_base_models() -> None:
    alice = make_actor()
    folder = ROOT / "tests" / "assets" / "tiny-chatml-1m"
    fields = {"path": str(folder), "names": "tiny\nother/tiny"}
    assert sign_in(alice).post("/settings/models/", fields).status_code == 400
    assert not BaseModel.objects.exists()
    User.objects.filter(pk=alice.user.pk).update(is_staff=True)
    browser = sign_in(alice)
    assert browser.post("/settings/models/", fields).status_code == 302
    added = BaseModel.objects.get()
    assert [name.name for name in added.names.all()] == ["tiny", "other/tiny"]
    assert "other/tiny" in browser.get("/settings/models/").content.decode()


def test_a_directory_that_cannot_be_trained_is_refused_with_the_reason() -> None:
    alice = make_actor()
    User.objects.filter(pk=alice.user.pk).update(is_staff=True)
    answer = sign_in(alice).post("/settings/models/", {"path": "/nowhere/at/all", "names": "gone"})
    assert "is not a directory on this machine" in answer.context["form"].errors["path"][0]


def test_a_base_model_is_removed_by_an_operator() -> None:
    alice, base_model = make_actor(), make_base_model()
    User.objects.filter(pk=alice.user.pk).update(is_staff=True)
    sign_in(alice).post("/settings/models/remove/", {"name": base_model.pk})
    assert not BaseModel.objects.exists()


def test_workers_say_whether_they_live_and_what_they_hold() -> None:
    register_worker(
        name="local", kind="gpu", device="2 CPU cores", memory_bytes=2**34, flops=1e11, pid=1
    )
    page = sign_in(make_actor()).get("/settings/workers/").content.decode()
    assert "2 CPU cores" in page
    assert "16.0 GiB" in page
    assert "alive" in page
    assert "nothing yet" in page


def test_someone_in_no_project_is_led_to_a_first_one(client: Client) -> None:
    client.force_login(User.objects.create_user("dora"))
    assert client.get("/runs/").headers["Location"] == "/projects/new/"
    assert client.get("/projects/new/").status_code == 200
    client.post("/projects/new/", {"name": "First"})
    assert client.get("/runs/").status_code == 200


def test_an_operator_finds_users_projects_and_keys_in_the_admin(client: Client) -> None:
    alice = make_actor()
    create_key(actor=alice, name="laptop")
    client.force_login(User.objects.create_superuser("root"))
    for path in ("user", "project", "apikey", f"project/{alice.project.pk}/change"):
        assert client.get(f"/admin/accounts/{path}/").status_code == 200


SECTIONS = (
    "",
    "members/",
    "webhooks/",
    "diagnostics/",
    "storage/",
    "models/",
    "workers/",
    "serving/",
    "conformance/",
)


def test_each_page_of_the_settings_has_a_title_of_its_own() -> None:
    browser = sign_in(make_actor())
    pages = [browser.get(f"/settings/{section}").content.decode() for section in SECTIONS]
    titles = {page.partition("<title>")[2].partition("</title>")[0] for page in pages}
    assert len(titles) == len(SECTIONS)
    assert "Webhooks · Settings · Hone" in titles


def test_operators_are_led_to_where_a_new_user_is_made_and_others_are_not() -> None:
    alice = make_actor()
    browser = sign_in(alice)
    assert "/admin/" not in browser.get("/settings/members/").content.decode()
    User.objects.filter(pk=alice.user.pk).update(is_superuser=True, is_staff=True)
    page = browser.get("/settings/members/").content.decode()
    assert 'href="/admin/accounts/user/add/"' in page
    assert browser.get("/admin/accounts/user/add/").status_code == 200
