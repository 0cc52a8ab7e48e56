"""The page of what works, from the reports that the suite has written."""

import json
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from pytest_django import Settings

from tests.webapp.cast import count_queries, make_actor, sign_in
from webapp.accounts.services import create_key
from webapp.tinker.conformance import COMMITTED, find_reports

pytestmark = pytest.mark.django_db

CALLS: list[tuple[str, ...]] = [
    ("Losses", "ppo", "supported", ""),
    ("Losses", "gspo", "refused", "loss_fn 'gspo' is not known here"),
    ("RestClient", "whoami", "unavailable", ""),
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, settings: Settings) -> Path:
    settings.HONE_HOME = tmp_path
    return tmp_path


def write(home: Path, version: str, ran_at: str, calls: list[tuple[str, ...]]) -> None:
    keys = ("group", "call", "status", "sentence")
    described: list[dict[str, Any]] = [
        dict(zip(keys, c, strict=True)) | {"note": ""} for c in calls
    ]
    report = {"sdk_version": version, "python": "3.11.7", "ran_at": ran_at, "calls": described}
    folder = home / "conformance"
    folder.mkdir(exist_ok=True)
    (folder / f"{version}.json").write_text(json.dumps(report))


def test_a_fresh_installation_shows_the_reports_it_came_with() -> None:
    shipped = sorted(path.stem for path in COMMITTED.glob("*.json"))
    assert shipped == ["0.22.3", "0.38.0"]
    page = sign_in(make_actor()).get("/settings/conformance/").content.decode()
    for report in find_reports():
        assert f"tinker {report.sdk_version}" in page
        assert f"{report.supported} of {report.offered} calls" in page
        assert report.supported + report.refused == report.offered
    assert "create_lora_training_client" in page
    assert "checkpoint push-hf" in page


def test_the_newest_sdk_comes_first() -> None:
    assert [report.sdk_version for report in find_reports()] == ["0.38.0", "0.22.3"]


def test_a_later_run_of_this_installation_takes_the_place_of_the_shipped_one(home: Path) -> None:
    write(home, "0.38.0", "2099-01-02T03:04:05+00:00", CALLS)
    write(home, "0.22.3", "2001-01-02T03:04:05+00:00", CALLS)
    newest, oldest = find_reports()
    assert (newest.supported, newest.offered, newest.refused) == (1, 2, 1)
    assert oldest.offered > 2
    assert "1 of 2 calls" in sign_in(make_actor()).get("/settings/conformance/").content.decode()


def test_a_refused_call_says_why_and_can_be_looked_at_alone(home: Path) -> None:
    for version in ("0.38.0", "0.22.3"):
        write(home, version, "2099-01-02T03:04:05+00:00", CALLS)
    page = sign_in(make_actor()).get("/settings/conformance/?status=refused")
    (group,) = page.context["groups"]
    assert [(each.supported, each.offered) for each in group.counts] == [(1, 2), (1, 2)]
    (row,) = group.rows
    assert (row.call, row.statuses) == ("gspo", [("0.38.0", "refused"), ("0.22.3", "refused")])
    assert row.sentences == [("0.38.0, 0.22.3", "loss_fn 'gspo' is not known here")]
    assert "loss_fn &#x27;gspo&#x27; is not known here" in page.content.decode()
    assert "whoami" not in page.content.decode()


def test_nothing_refused_is_said_so(home: Path) -> None:
    for version in ("0.38.0", "0.22.3"):
        write(home, version, "2099-01-02T03:04:05+00:00", CALLS[:1])
    page = sign_in(make_actor()).get("/settings/conformance/?status=refused")
    assert "Nothing is refused" in page.content.decode()


def test_the_page_asks_the_database_for_nobody_but_its_reader() -> None:
    assert count_queries(sign_in(make_actor()), "/settings/conformance/") <= 5


def test_it_is_for_those_who_are_signed_in() -> None:
    assert Client().get("/settings/conformance/").status_code == 302


def test_sdk_users_find_it_from_their_keys() -> None:
    browser = sign_in(make_actor())
    shown = browser.post("/settings/", {"name": "laptop"}).content.decode()
    assert shown.count("/settings/conformance/") == 2  # the tab, and beside the lines for the SDK


def test_rest_says_the_same() -> None:
    secret = create_key(actor=make_actor(), name="script")[1]
    headers = {"Authorization": f"Bearer {secret}"}
    told = Client(headers=headers).get("/rest/conformance").json()
    assert [each["sdk_version"] for each in told] == ["0.38.0", "0.22.3"]
    for each, report in zip(told, find_reports(), strict=True):
        assert (each["supported"], each["offered"]) == (report.supported, report.offered)
        assert len(each["calls"]) == len(report.calls)
    assert Client().get("/rest/conformance").status_code == 401


def test_it_stands_in_the_schema() -> None:
    assert "/rest/conformance" in Client().get("/rest/schema?format=json").json()["paths"]
