"""What happened at a step: said once, listed on the page and by REST, told to who watches."""

import pytest
from django.test import Client

from tests.webapp.cast import make_actor, make_run, sign_in
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.runs import annotations
from webapp.runs.annotations import MOST, annotate, list_annotations
from webapp.runs.models import Run
from webapp.runs.records import Annotation

pytestmark = pytest.mark.django_db

Kind = Annotation.Kind


@pytest.fixture
def alice() -> Actor:
    return make_actor()


@pytest.fixture
def run(alice: Actor) -> Run:
    return make_run(alice)


def test_a_replay_says_nothing_twice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(annotations, "publish", lambda group, what: told.append(what))
    assert annotate(run, 3, Kind.STEERING, "The learning rate is 1e-4 from here on.")
    assert not annotate(run, 3, Kind.STEERING, "The learning rate is 1e-4 from here on.")
    assert annotate(run, 4, Kind.STEERING, "The learning rate is 1e-4 from here on.")
    assert told == ["annotations"] * 2
    assert run.annotations.count() == 2


def test_the_page_lists_them_and_hands_them_to_the_charts(alice: Actor, run: Run) -> None:
    annotate(run, 7, Kind.DIAGNOSTIC, "Loss <jumped>.")
    annotate(run, 2, Kind.STEERING, "Paused.", alice.user)
    browser = sign_in(alice)
    for path in ("", "parts/annotations/"):
        page = browser.get(f"/runs/{run.pk}/{path}").content.decode()
        assert page.index("Paused.") < page.index("Loss &lt;jumped&gt;.")
        assert 'id="annotation-marks"' in page
        assert "by alice" in page
        assert "<jumped>" not in page
    assert "hidden" not in page.split("<header>")[0]


def test_a_run_without_any_shows_no_empty_list(alice: Actor, run: Run) -> None:
    page = sign_in(alice).get(f"/runs/{run.pk}/parts/annotations/").content.decode()
    assert "hidden" in page.split("<header>")[0]


def test_of_very_many_the_newest_are_drawn(run: Run) -> None:
    Annotation.objects.bulk_create(
        Annotation(run=run, step=step, kind=Kind.EVALUATION, text="0.5") for step in range(MOST + 5)
    )
    listed = list_annotations(run)
    assert (len(listed), listed[0].step, listed[-1].step) == (MOST, 5, MOST + 4)


def test_rest_lists_them_and_not_those_of_another_project(alice: Actor, run: Run) -> None:
    annotate(run, 2, Kind.STEERING, "Paused.", alice.user)
    annotate(run, 5, Kind.DIAGNOSTIC, "Spiking.")
    client = Client(headers={"X-API-Key": create_key(actor=alice, name="k")[1]})
    told = client.get(f"/rest/runs/{run.pk}/annotations").json()
    assert [(each["step"], each["kind"], each["text"], each["user"]) for each in told] == [
        (2, "steering", "Paused.", "alice"),
        (5, "diagnostic", "Spiking.", ""),
    ]
    theirs = make_run(make_actor("carol"), run.base_model)
    assert client.get(f"/rest/runs/{theirs.pk}/annotations").status_code == 404
    assert sign_in(alice).get(f"/runs/{theirs.pk}/parts/annotations/").status_code == 404
