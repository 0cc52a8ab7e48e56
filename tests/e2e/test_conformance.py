"""Every call of the oldest and of the newest SDK, and that the product's page tells the truth."""

import json
import os
from pathlib import Path

import pytest

from tests.e2e.conformance_reports import (
    ENVIRONMENTS,
    Report,
    find_committed,
    find_differences,
    name_call,
    run_suite,
    write_report,
)
from tests.e2e.live import Live

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
ANSWERS = ("supported", "refused", "unavailable")


@pytest.fixture(scope="module", params=sorted(ENVIRONMENTS))
def found(live: Live, request: pytest.FixtureRequest) -> Report:
    report = run_suite(live, request.param)
    if folder := os.environ.get("HONE_REPORTS"):  # set by tests/run.sh: this installation's own
        write_report(report, Path(folder))
    return report


def test_every_call_is_answered_or_refused_in_a_sentence(found: Report) -> None:
    calls = found["calls"]
    assert [name_call(call) for call in calls if call["status"] not in ANSWERS] == []
    refused = [call for call in calls if call["status"] == "refused"]
    assert [name_call(call) for call in refused if len(call["sentence"].split()) < 4] == []


def test_the_shipped_report_is_what_the_suite_finds(found: Report) -> None:
    committed = json.loads(find_committed(found["sdk_version"]).read_text())
    assert find_differences(found, committed) == [], "`make conformance` renews the report"
