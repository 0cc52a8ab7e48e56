"""Deliveries reach a real server, signed; what is not taken is tried again, and not for ever."""

import hmac
import json
from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha256

import httpx
import pytest
from django.utils.timezone import now

from tests.webapp.cast import make_actor
from tests.webhook_server import Server, run_server
from webapp.accounts.models import Actor, Delivery, Webhook
from webapp.accounts.webhooks import claim_delivery, create_webhook, send_test, tell
from workers import webhooks
from workers.webhooks import deliver

pytestmark = pytest.mark.django_db


@pytest.fixture
def server() -> Iterator[Server]:
    with run_server() as running:
        yield running


@pytest.fixture
def alice() -> Actor:
    return make_actor()


def make_webhook(actor: Actor, url: str, *events: str) -> tuple[Webhook, str]:
    return create_webhook(actor=actor, url=url, events=events)


def read_one() -> Delivery:
    return Delivery.objects.get()


def test_a_delivery_is_signed_so_that_its_reader_knows_it_is_whole(
    alice: Actor, server: Server
) -> None:
    _, secret = make_webhook(alice, f"{server.url}/hook?x=1")
    tell(alice.project, "run.failed", "run-1", {"text": "It failed.", "run": "run-1"})
    deliver()
    ((headers, body),) = server.got
    moment, given = (part.partition("=")[2] for part in headers["Hone-Signature"].split(","))
    wanted = hmac.new(secret.encode(), f"{moment}.".encode() + body, sha256).hexdigest()
    assert given == wanted
    told = json.loads(body)
    assert (told["event"], told["text"], told["run"]) == ("run.failed", "It failed.", "run-1")
    assert (told["project"], headers["Hone-Event"]) == (alice.project.pk, "run.failed")
    assert told["id"] == read_one().key
    assert (read_one().status, read_one().tries, read_one().error) == ("taken", 1, "")


def test_the_same_thing_told_again_is_sent_once(alice: Actor, server: Server) -> None:
    make_webhook(alice, server.url)
    for _ in range(3):
        tell(alice.project, "run.failed", "run-1", {"text": "It failed."})
        deliver()
    assert len(server.got) == 1


def test_a_webhook_hears_only_what_it_asked_for(alice: Actor, server: Server) -> None:
    make_webhook(alice, server.url, "diagnostic.*", "run.failed")
    assert tell(alice.project, "run.done", "run-1", {"text": "Done."}) == 0
    assert tell(alice.project, "run.failed", "run-1", {"text": "Failed."}) == 1
    assert tell(alice.project, "diagnostic.stale_sampler", "run-1", {"text": "Stale."}) == 1
    assert tell(make_actor("carol").project, "run.failed", "run-2", {"text": "Theirs."}) == 0


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(500, "It answered 500."), (404, "It answered 404."), (302, "redirects are not followed")],
)
def test_what_is_refused_is_tried_again_later(
    alice: Actor, server: Server, status: int, sentence: str
) -> None:
    make_webhook(alice, server.url)
    server.status = status
    tell(alice.project, "run.failed", "run-1", {"text": "It failed."})
    deliver()
    deliver()  # not due yet
    assert len(server.got) == 1
    waiting = read_one()
    assert (waiting.status, waiting.tries) == ("waiting", 1)
    assert sentence in waiting.error
    assert waiting.next_at > now() + timedelta(seconds=10)
    server.status = 204
    Delivery.objects.update(next_at=now())
    deliver()
    assert (read_one().status, read_one().tries, read_one().error) == ("taken", 2, "")


def test_each_try_waits_longer_than_the_one_before(alice: Actor) -> None:
    make_webhook(alice, "http://127.0.0.1:9/")
    tell(alice.project, "run.failed", "run-1", {"text": "It failed."})
    rests = []
    for _ in range(7):
        assert claim_delivery(read_one())
        rests.append((read_one().next_at - now()).total_seconds())
    assert rests == pytest.approx([15, 60, 300, 900, 3600, 3600, 3600], abs=10)


@pytest.mark.parametrize(("hours", "status"), [(23.9, "waiting"), (24.1, "given_up")])
def test_after_a_day_it_is_given_up_in_a_sentence(alice: Actor, hours: float, status: str) -> None:
    make_webhook(alice, "http://127.0.0.1:9/")
    tell(alice.project, "run.failed", "run-1", {"text": "It failed."})
    Delivery.objects.update(created_at=now() - timedelta(hours=hours), tries=27)
    deliver()
    ended = read_one()
    assert ended.status == status
    assert ("Given up after a day and 28 tries." in ended.error) is (status == "given_up")
    assert "could not be reached" in ended.error


def test_a_silent_address_holds_nobody_up_and_is_asked_once(
    alice: Actor, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "LIMITS", httpx.Timeout(0.3))
    with run_server() as other:
        other.is_silent = True
        make_webhook(alice, other.url)
        make_webhook(alice, server.url)
        for number in range(3):
            tell(alice.project, "run.failed", f"run-{number}", {"text": "It failed."})
        deliver()
    assert (len(server.got), len(other.got)) == (3, 1)
    first = Delivery.objects.filter(webhook__url=other.url).earliest("pk")
    assert (first.tries, first.error) == (1, "It did not answer within 5 s.")


def test_an_answer_that_trickles_in_is_not_waited_for(
    alice: Actor, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "WHOLE_SECONDS", 0.5)
    server.is_slow = True
    make_webhook(alice, server.url)
    tell(alice.project, "run.failed", "run-1", {"text": "It failed."})
    deliver()
    assert read_one().error == "Its answer did not come to an end within 0.5 s."


def test_a_crowd_for_a_dead_address_keeps_no_place_of_others(
    alice: Actor, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "MOST_AT_ONCE", 3)
    make_webhook(alice, "http://127.0.0.1:9/")
    for number in range(8):
        tell(alice.project, "run.failed", f"old-{number}", {"text": "It failed."})
    make_webhook(alice, server.url)
    tell(alice.project, "run.failed", "new", {"text": "It failed."})
    deliver()
    assert len(server.got) == 1
    waiting = Delivery.objects.filter(webhook__url="http://127.0.0.1:9/")
    assert sorted(waiting.values_list("tries", flat=True)) == [0] * 8 + [1]
    assert not waiting.filter(next_at__lte=now()).exists()


def test_a_delivery_that_another_process_has_is_left_to_it(alice: Actor, server: Server) -> None:
    make_webhook(alice, server.url)
    tell(alice.project, "run.failed", "run-1", {"text": "It failed."})
    mine, theirs = read_one(), read_one()
    assert claim_delivery(theirs)
    assert not claim_delivery(mine)
    deliver()
    assert server.got == []


def test_a_test_event_goes_to_one_webhook_whatever_it_hears(alice: Actor, server: Server) -> None:
    webhook, _ = make_webhook(alice, server.url, "run.failed")
    make_webhook(alice, server.url)
    send_test(actor=alice, webhook=webhook)
    send_test(actor=alice, webhook=webhook)
    deliver()
    told = [json.loads(body) for _, body in server.got]
    assert [each["event"] for each in told] == ["webhook.test"] * 2
    assert "alice's project" in told[0]["text"]


def test_a_name_that_nobody_has_is_said(alice: Actor) -> None:
    make_webhook(alice, "http://no-such-host.invalid/")
    tell(alice.project, "run.failed", "run-1", {"text": "It failed."})
    deliver()
    assert read_one().error.startswith("It could not be reached: ")
