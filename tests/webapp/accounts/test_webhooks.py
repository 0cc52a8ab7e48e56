"""Webhooks: whose they are, what may be entered, and that their secrets are shown once."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils.timezone import now

from tests.webapp.cast import make_actor, make_viewer, sign_in
from webapp.accounts.models import Actor, AuditEntry, Delivery, Membership, Role, Webhook
from webapp.accounts.services import create_key
from webapp.accounts.webhooks import (
    MOST_WEBHOOKS,
    create_webhook,
    forget_deliveries,
    make_key,
    mask,
    tell,
)
from webapp.core.errors import UserError

pytestmark = pytest.mark.django_db

URL = "https://chat.example/services/T0/secret-part"


@pytest.fixture
def alice() -> Actor:
    return make_actor()


@pytest.fixture
def client(alice: Actor) -> Client:
    return Client(headers={"X-API-Key": create_key(actor=alice, name="k")[1]})


def test_the_secret_is_shown_once_and_the_address_never_whole(alice: Actor) -> None:
    browser = sign_in(alice)
    shown = browser.post("/settings/webhooks/", {"url": URL, "events": ["run.failed"]})
    secret = shown.context["secret"]
    assert secret.startswith("whsec_")
    assert secret in shown.content.decode()
    later = browser.get("/settings/webhooks/").content.decode()
    assert secret not in later
    assert "secret-part" not in later
    assert "https://chat.example/…" in later
    assert Webhook.objects.get().events == ["run.failed"]


@pytest.mark.parametrize("role", [Role.MEMBER, Role.VIEWER])
def test_only_owners_see_and_change_webhooks(alice: Actor, role: str) -> None:
    webhook, _ = create_webhook(actor=alice, url=URL)
    vera = make_viewer(alice)
    Membership.objects.filter(user=vera.user).update(role=role)
    browser = sign_in(vera)
    page = browser.get("/settings/webhooks/").content.decode()
    assert "An owner of the project makes them" in page
    assert "chat.example" not in page
    refused = browser.post("/settings/webhooks/", {"url": URL})
    assert b"Only an owner" in refused.content
    for action in ("test", "switch", "delete"):
        assert browser.post(f"/settings/webhooks/{webhook.pk}/{action}/").status_code == 400
    key = Client(
        headers={
            "X-API-Key": create_key(
                actor=Actor(user=vera.user, project=alice.project, role=role), name="v"
            )[1]
        }
    )
    assert key.get("/rest/webhooks").status_code == 400
    assert Webhook.objects.get().is_active
    assert not Delivery.objects.exists()


def test_another_projects_webhook_is_not_there(alice: Actor, client: Client) -> None:
    theirs, _ = create_webhook(actor=make_actor("carol"), url=URL)
    browser = sign_in(alice)
    assert browser.post(f"/settings/webhooks/{theirs.pk}/delete/").status_code == 404
    assert client.delete(f"/rest/webhooks/{theirs.pk}").status_code == 404
    assert client.get(f"/rest/webhooks/{theirs.pk}/deliveries").status_code == 404
    assert client.post(f"/rest/webhooks/{theirs.pk}/test").status_code == 404
    assert client.get("/rest/webhooks").json() == []


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "required"),
        ("ftp://host/x", "begins with http:// or https://"),
        ("javascript:alert(1)", "begins with http:// or https://"),
        ("http://", "names a host"),
        ("hooks.example/x", "begins with http:// or https://"),
        ("http://name:word@host/", "carries a name or password"),
        ("http://name@host/", "carries a name or password"),
        ("http://host:99999/", "not one that can be written"),
        ("http://[::1/", "not one that can be written"),
        ("http://ho st/", "not one that can be written"),
        ("http://host/" + "x" * 500, "at most 500 characters"),
    ],
)
def test_an_address_is_checked_in_a_sentence(alice: Actor, url: str, sentence: str) -> None:
    refused = sign_in(alice).post("/settings/webhooks/", {"url": url})
    assert refused.status_code == 400
    assert sentence in " ".join(refused.context["form"].errors["url"])
    assert not Webhook.objects.exists()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/x", "http://10.0.0.8/", "http://[::1]:9/", "https://h.example"]
)
def test_this_machine_and_private_networks_are_allowed(alice: Actor, url: str) -> None:
    create_webhook(actor=alice, url=url)
    assert Webhook.objects.get().url == url


def test_rest_makes_switches_tries_and_deletes_one(client: Client) -> None:
    body = {"url": URL, "events": ["diagnostic.*", "diagnostic.memorising"]}
    made = client.post("/rest/webhooks", body, content_type="application/json").json()
    assert made["secret"].startswith("whsec_")
    assert "secret-part" not in str(made)
    path = f"/rest/webhooks/{made['id']}"
    assert "secret" not in client.get("/rest/webhooks").json()[0]
    assert client.post(f"{path}/test").status_code == 202
    (sent,) = client.get(f"{path}/deliveries").json()
    assert (sent["event"], sent["status"], sent["tries"]) == ("webhook.test", "waiting", 0)
    off = client.patch(path, {"is_active": False}, content_type="application/json")
    assert off.json()["is_active"] is False
    (given_up,) = client.get(f"{path}/deliveries").json()
    assert (given_up["status"], given_up["error"]) == ("given_up", "The webhook was switched off.")
    assert client.post(f"{path}/test").status_code == 400
    assert client.delete(path).status_code == 204
    assert client.get("/rest/webhooks").json() == []
    events = list(AuditEntry.objects.filter(event__startswith="webhook").values_list("event"))
    assert events == [("webhook_created",), ("webhook_switched_off",), ("webhook_deleted",)]


@pytest.mark.parametrize("events", [["x"], ["run.failed", "a b.c"], ["run."], [".x"], [7], "x"])
def test_what_is_no_event_is_refused(client: Client, events: object) -> None:
    body = {"url": URL, "events": events}
    answer = client.post("/rest/webhooks", body, content_type="application/json")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_project_has_so_many_webhooks_and_no_more(alice: Actor) -> None:
    for _ in range(MOST_WEBHOOKS):
        create_webhook(actor=alice, url=URL)
    with pytest.raises(UserError, match="at most 20 webhooks"):
        create_webhook(actor=alice, url=URL)


def test_a_webhook_that_is_off_is_told_nothing(alice: Actor) -> None:
    create_webhook(actor=alice, url=URL)
    Webhook.objects.update(is_active=False)
    assert tell(alice.project, "run.failed", "run-1", {"text": "It failed."}) == 0


def test_long_keys_stay_apart() -> None:
    first, second = (make_key("run.failed", "x" * 200 + end) for end in "ab")
    assert first != second
    assert len(first) <= 120
    assert make_key("run.failed", "run-1") == "run.failed:run-1"


def test_what_a_page_shows_of_an_address_is_where_it_leads() -> None:
    assert mask("https://chat.example:8443/a/b?c=d") == "https://chat.example:8443/…"
    assert mask("http://localhost:9000") == "http://localhost:9000"
    assert mask("http://localhost:9000/?token=x") == "http://localhost:9000/…"


def test_old_deliveries_are_forgotten(alice: Actor) -> None:
    create_webhook(actor=alice, url=URL)
    tell(alice.project, "run.failed", "old", {"text": "It failed."})
    Delivery.objects.update(status="taken", ended_at=now() - timedelta(days=31))
    tell(alice.project, "run.failed", "new", {"text": "It failed."})
    forget_deliveries()
    assert Delivery.objects.get().key == "run.failed:new"


@pytest.mark.parametrize(("hours", "status"), [(25.9, "waiting"), (26.1, "given_up")])
def test_what_found_no_turn_for_a_day_is_given_up(alice: Actor, hours: float, status: str) -> None:
    create_webhook(actor=alice, url=URL)
    tell(alice.project, "run.failed", "late", {"text": "It failed."})
    Delivery.objects.update(created_at=now() - timedelta(hours=hours))
    forget_deliveries()
    assert Delivery.objects.get().status == status


def test_the_page_shows_what_was_sent_and_what_came_of_it(alice: Actor) -> None:
    create_webhook(actor=alice, url=URL)
    tell(alice.project, "run.failed", "run-1", {"text": "Run <x> failed."})
    Delivery.objects.update(error="It answered 500.", tries=3)
    page = sign_in(alice).get("/settings/webhooks/").content.decode()
    assert "Run &lt;x&gt; failed." in page
    assert "It answered 500." in page
