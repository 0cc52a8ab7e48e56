"""When diagnostics speak: set by owners, over the page and REST, checked, audited and reset."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils.timezone import now

from tests.webapp.cast import make_actor, make_run, make_viewer, sign_in
from webapp.accounts.models import Actor, AuditEntry
from webapp.accounts.services import create_key
from webapp.core.errors import UserError
from webapp.runs.models import Run
from webapp.runs.records import Look, ProjectThreshold
from webapp.runs.thresholds import DEFAULTS, THRESHOLDS, read_limits, read_values, set_thresholds

pytestmark = pytest.mark.django_db

PAGE = "/settings/diagnostics/"
REST = "/rest/diagnostics/thresholds"


@pytest.fixture
def alice() -> Actor:
    return make_actor()


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


@pytest.fixture
def program(alice: Actor) -> Client:
    return Client(headers={"X-API-Key": create_key(actor=alice, name="program")[1]})


def read(actor: Actor) -> dict[str, float]:
    return read_values(actor.project.pk)


def test_every_limit_can_be_set_and_stands_within_its_bounds() -> None:
    assert {each.key for each in THRESHOLDS} == set(DEFAULTS.__slots__)
    assert all(each.low <= each.default <= each.high for each in THRESHOLDS)


def test_a_project_has_its_own_and_no_other_has_them(alice: Actor) -> None:
    set_thresholds(actor=alice, values={"zero_share": 0.9, "rises": 5})
    limits = read_limits(alice.project.pk)
    assert (limits.zero_share, limits.rises, limits.lost_share) == (0.9, 5, 0.01)
    assert isinstance(limits.rises, int)
    assert read_limits(make_actor("bob").project.pk) == DEFAULTS
    entries = AuditEntry.objects.filter(project=alice.project, event="threshold_changed")
    assert sorted(each.details["threshold"] for each in entries) == ["rises", "zero_share"]
    set_thresholds(actor=alice, values={"zero_share": None, "rises": 3})
    assert not ProjectThreshold.objects.exists()
    assert entries.all().count() == 4
    assert entries.filter(details={"threshold": "rises", "before": 5, "now": 3}).exists()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"zero_share": 2}, "zero_share is 2: give from 0.01 to 1."),
        ({"zero_share": float("nan")}, "zero_share is nan"),
        ({"zero_share": "much"}, "zero_share is 'much'"),
        ({"zero_share": True}, "zero_share is True"),
        ({"rises": 2.5}, "rises is 2.5: give a whole number from 2 to 100."),
        ({"rises": 10**400}, "rises is 1000"),
        ({"luck": 1}, "There is no threshold 'luck'; there are sequential_share,"),
    ],
)
def test_what_cannot_be_one_sets_nothing(alice: Actor, values: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        set_thresholds(actor=alice, values={"age_steps": 4, **values})
    assert read_limits(alice.project.pk) == DEFAULTS


def test_runs_of_the_last_day_are_looked_at_again(alice: Actor) -> None:
    new = make_run(alice)
    old = make_run(alice, new.base_model, model_seq_id=1)
    for run in (new, old):
        Look.objects.create(run=run, looked_at=now())
    Run.objects.filter(pk=old.pk).update(last_request_at=now() - timedelta(days=2))
    set_thresholds(actor=alice, values={"zero_share": 0.5})  # as it is
    assert not Look.objects.filter(looked_at=None).exists()
    set_thresholds(actor=alice, values={"zero_share": 0.6})
    assert [each.run_id for each in Look.objects.filter(looked_at=None)] == [new.pk]


def test_over_rest(alice: Actor, program: Client) -> None:
    def patch(body: Any) -> Any:
        return program.patch(REST, body, content_type="application/json")

    rows = {each["key"]: each for each in program.get(REST).json()}
    assert rows["expires_hours"] == {
        "key": "expires_hours",
        "diagnostic": "checkpoint_will_expire",
        "meaning": "Hours that are left, fewer than",
        "value": 24.0,
        "default": 24.0,
        "low": 1.0,
        "high": 720.0,
        "is_whole": True,
    }
    answer = patch({"values": {"expires_hours": 48, "age_steps": 2.5}})
    assert answer.status_code == 200, answer.content
    assert {each["key"]: each["value"] for each in answer.json()} == read(alice)
    assert (read(alice)["expires_hours"], read(alice)["age_steps"]) == (48, 2.5)
    assert patch({"values": {"expires_hours": None}}).status_code == 200
    assert read(alice)["expires_hours"] == 24
    refused: list[Any] = [
        {},
        {"values": 1},
        {"values": {"rises": 1}},
        {"values": {"rises": "x"}},
        [],
    ]
    for wrong in refused:
        assert patch(wrong).status_code == 400
    assert read(alice)["age_steps"] == 2.5
    assert program.delete(REST).status_code == 200
    assert read_limits(alice.project.pk) == DEFAULTS


def test_on_the_page(alice: Actor, browser: Client) -> None:
    page = browser.get(PAGE)
    filled = {key: str(value) for key, value in page.context["form"].initial.items()}
    assert browser.post(PAGE, filled | {"rises": "1"}).status_code == 400
    saved = browser.post(PAGE, filled | {"rises": "5", "zero_share": "", "age_steps": "2"})
    assert saved.status_code == 302
    assert (read(alice)["rises"], read(alice)["zero_share"]) == (5, 0.5)
    told = browser.get(PAGE).content.decode()
    assert "Saved: runs of the last day" in told
    assert told.count('form="reset-thresholds"') == 3  # two of them, and all
    browser.post(PAGE, {"reset": "rises"})
    assert (read(alice)["rises"], read(alice)["age_steps"]) == (3, 2)
    browser.post(PAGE, {"reset": "all"})
    assert read_limits(alice.project.pk) == DEFAULTS
    assert 'form="reset-thresholds"' not in browser.get(PAGE).content.decode()


def test_who_is_no_owner_sees_them_and_changes_none(alice: Actor) -> None:
    viewer = sign_in(make_viewer(alice))
    page = viewer.get(PAGE)
    assert page.status_code == 200
    assert "An owner of the project can change them." in page.content.decode()
    for body in ({"rises": "5"}, {"reset": "all"}):
        assert viewer.post(PAGE, body).status_code in (400, 403)
    assert read_limits(alice.project.pk) == DEFAULTS


def test_a_run_says_when_it_was_looked_at(alice: Actor, browser: Client) -> None:
    run = make_run(alice)
    url = f"/runs/{run.pk}/?tab=integrity"
    assert "It is looked at within a minute." in browser.get(url).content.decode()
    Look.objects.create(run=run, looked_at=now())
    page = browser.get(url).content.decode()
    assert "Last looked at" in page
    assert "every 30s" in page  # each look is told, also one that finds what was known
    Run.objects.filter(pk=run.pk).update(status="done")
    assert "every 30s" not in browser.get(url).content.decode()
