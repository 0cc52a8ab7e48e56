"""Findings: begun, told and drawn once, ended, dismissed, and seen wherever a run is seen."""

from typing import Any

import pytest
from django.test import Client
from django.utils.timezone import now

from tests.webapp.cast import make_actor, make_run, make_viewer, sign_in
from tests.webapp.deployments.conftest import make_checkpoint
from webapp.accounts.models import Actor, Delivery
from webapp.accounts.services import create_key
from webapp.accounts.webhooks import create_webhook
from webapp.runs.diagnostics import DIAGNOSTICS
from webapp.runs.findings import (
    dismiss_finding,
    end_finding,
    keep_look,
    list_entries,
    list_open,
    note_finding,
    take_look,
)
from webapp.runs.models import Run
from webapp.runs.records import Finding, Look

pytestmark = pytest.mark.django_db

KEY = "stale_sampler"
TEXT = "Samples are <old>. Create the sampling client again."


@pytest.fixture
def alice() -> Actor:
    return make_actor()


@pytest.fixture
def run(alice: Actor) -> Run:
    return make_run(alice)


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


def note(run: Run, *, step: int = 5, text: str = TEXT, **facts: Any) -> Finding:
    return note_finding(run, KEY, step=step, text=text, facts=facts, level="warning")


def test_what_is_found_is_told_and_drawn_once(alice: Actor, run: Run) -> None:
    create_webhook(actor=alice, url="http://127.0.0.1:9/")
    for step in (5, 6, 7):
        note(run, step=step, saves=step)
    finding = run.findings.get()
    assert (finding.step, finding.last_step, finding.facts) == (5, 7, {"saves": 7})
    drawn = run.annotations.get()
    assert (drawn.step, drawn.kind, drawn.text) == (5, "diagnostic", f"Stale sampler: {TEXT}")
    sent = Delivery.objects.get()
    assert (sent.event, sent.key) == (f"diagnostic.{KEY}", f"diagnostic.{KEY}:{run.pk}:5")
    assert sent.body["text"] == f"a run: Stale sampler at step 5. {TEXT}"
    assert (sent.body["run"], sent.body["level"]) == (run.pk, "warning")


def test_what_ends_and_begins_again_is_told_again(alice: Actor, run: Run) -> None:
    create_webhook(actor=alice, url="http://127.0.0.1:9/")
    note(run, step=5)
    assert end_finding(run, KEY)
    assert not end_finding(run, KEY)
    assert list_open(run) == []
    note(run, step=9)
    finding = run.findings.get()
    assert (finding.step, finding.ended_at) == (9, None)
    assert [each.step for each in run.annotations.all()] == [5, 9]
    assert Delivery.objects.count() == 2


def test_a_dismissed_one_shows_no_badge_until_it_begins_again(
    alice: Actor, run: Run, browser: Client
) -> None:
    note(run)
    page = browser.post(f"/runs/{run.pk}/findings/{KEY}/dismiss/", follow=True).content.decode()
    assert "Dismissed" in page
    assert "by alice" in page
    assert list_open(run) == []
    note(run, step=6)
    assert list_open(run) == []
    browser.post(f"/runs/{run.pk}/findings/{KEY}/restore/")
    assert [each.diagnostic for each in list_open(run)] == [KEY]
    dismiss_finding(actor=alice, run=run, key=KEY)
    end_finding(run, KEY)
    note(run, step=8)
    assert [each.step for each in list_open(run)] == [8]


def test_a_viewer_dismisses_nothing_and_strangers_see_nothing(alice: Actor, run: Run) -> None:
    note(run)
    vera = sign_in(make_viewer(alice))
    assert vera.post(f"/runs/{run.pk}/findings/{KEY}/dismiss/").status_code == 400
    assert b"Dismiss" not in vera.get(f"/runs/{run.pk}/?tab=integrity").content
    carol = sign_in(make_actor("carol"))
    assert carol.post(f"/runs/{run.pk}/findings/{KEY}/dismiss/").status_code == 404
    assert carol.get(f"/runs/{run.pk}/parts/findings/").status_code == 404
    assert [each.diagnostic for each in list_open(run)] == [KEY]


@pytest.mark.parametrize("key", ["memorising", "no-such-thing"])
def test_what_was_not_found_cannot_be_dismissed(run: Run, browser: Client, key: str) -> None:
    for verb in ("dismiss", "restore"):
        assert browser.post(f"/runs/{run.pk}/findings/{key}/{verb}/").status_code == 404


def test_a_run_is_marked_wherever_it_is_seen(run: Run, browser: Client) -> None:
    note(run)
    for path in ("/", "/runs/", f"/runs/{run.pk}/", f"/runs/{run.pk}/parts/findings/"):
        page = browser.get(path).content.decode()
        assert "stale sampler" in page.lower(), path
        assert "Samples are &lt;old&gt;." in page, path
        assert "<old>" not in page, path
    end_finding(run, KEY)
    for path in ("/", "/runs/", f"/runs/{run.pk}/parts/findings/"):
        assert "Samples are &lt;old&gt;." not in browser.get(path).content.decode()


def test_the_integrity_tab_lists_all_ten_with_how_they_stand(run: Run, browser: Client) -> None:
    look = take_look(run, seen=None, moment=now())
    assert look is not None
    states = {
        "memorising": {"state": "not_applicable", "text": "No loss on held-out rows is measured."},
        "off_policy": {"state": "clear", "text": "Samples are fresh."},
        "zero_signal_groups": {"state": "waiting", "text": "It takes 3 steps."},
    }
    keep_look(look, states=states, memory={})
    note(run)
    page = browser.get(f"/runs/{run.pk}/?tab=integrity").content.decode()
    for each in DIAGNOSTICS:
        assert each.title in page
    for word in ("does not apply", "nothing found", "too early to say", "It takes 3 steps."):
        assert word in page
    assert page.index("Stale sampler</h2>") < page.index("Sequential client</td>")
    assert [entry.is_open for entry in list_entries(run)] == [True] + [False] * 9


def test_a_checkpoint_that_will_expire_is_kept_from_its_finding(run: Run, browser: Client) -> None:
    checkpoint = make_checkpoint(run, expires_at=now())
    facts = {"id": checkpoint.pk, "name": "step-10", "step": 10, "why": "served", "can_keep": True}
    note(run, checkpoints=[facts])
    page = browser.get(f"/runs/{run.pk}/?tab=integrity").content.decode()
    assert f"/checkpoints/{checkpoint.pk}/keep/" in page
    browser.post(f"/checkpoints/{checkpoint.pk}/keep/")
    checkpoint.refresh_from_db()
    assert checkpoint.expires_at is None


def test_the_evidence_of_a_batch_and_of_answers_is_shown(run: Run, browser: Client) -> None:
    batch = [{"seq": 9, "datum": 0, "tokens": 12, "loss": 8.125, "digest": "abc123"}]
    answers = [{"step": 3, "group": 1, "index": 0, "reward": 0.75, "text": "la <la> la"}]
    note(run, step=3, batch=batch, num_datums=4, answers=answers, numbers={"share": "50%"})
    page = browser.get(f"/runs/{run.pk}/?tab=integrity").content.decode()
    for piece in ("seq 9", "8.125", "abc123", "1 of 4 datums", "la &lt;la&gt; la", "50%"):
        assert piece in page, piece


def test_the_rows_of_a_batch_have_the_numbers_of_the_data_tab(run: Run, browser: Client) -> None:
    note(run, step=3, batch=[{"row": 7, "loss": 8.125}], num_datums=1)
    page = browser.get(f"/runs/{run.pk}/?tab=integrity").content.decode()
    assert "<td>row 7</td>" in page


def test_rest_tells_all_ten_and_dismisses(alice: Actor, run: Run) -> None:
    client = Client(headers={"X-API-Key": create_key(actor=alice, name="k")[1]})
    path = f"/rest/runs/{run.pk}/findings"
    note(run, saves=4)
    told = client.get(path).json()
    assert len(told) == 10
    first = told[0]
    assert (first["diagnostic"], first["state"], first["step"]) == (KEY, "found", 5)
    assert (first["text"], first["facts"]) == (TEXT, {"saves": 4})
    assert {each["state"] for each in told[1:]} == {"waiting"}
    assert told[1]["level"] is None
    after = client.put(f"{path}/{KEY}/dismissal").json()
    assert after[0]["dismissed_at"] is not None
    assert client.delete(f"{path}/{KEY}/dismissal").json()[0]["dismissed_at"] is None
    assert client.put(f"{path}/memorising/dismissal").status_code == 404
    theirs = make_run(make_actor("carol"), run.base_model)
    assert client.get(f"/rest/runs/{theirs.pk}/findings").status_code == 404


def test_two_processes_take_one_look(run: Run) -> None:
    first, second = now(), now()
    assert take_look(run, seen=None, moment=first) is not None
    assert take_look(run, seen=None, moment=second) is None
    assert take_look(run, seen=first, moment=second) is not None
    assert Look.objects.get().looked_at == second
