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
    run_program,
    run_suite,
    write_report,
)
from tests.e2e.live import TORCH_PYTHON, Live

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


@pytest.fixture(scope="module")
def checked() -> Report:
    return run_program(TORCH_PYTHON, "self_check.py", dict(os.environ))


@pytest.mark.parametrize(
    ("ending", "status", "sentence"),
    [
        ("no case", "broken", "No case of this suite calls it."),
        ("no answer", "broken", "It was left without an answer"),
        ("wrong answer", "broken", "a datum came"),
        ("sentence", "refused", "Say which run."),
        ("bare refusal", "broken", "400"),
        ("server's error", "broken", "500"),
    ],
)
def test_the_suite_lets_nothing_through(
    checked: Report, ending: str, status: str, sentence: str
) -> None:
    told = checked["endings"][ending]
    assert told["status"] == status
    assert sentence in told["sentence"]


def test_the_suite_counts_forms_and_parameters(checked: Report) -> None:
    assert checked["missed"] == ["get_session_async"]
    assert "get_session_async(access_scope)" in checked["unpassed"]
    assert "save_state(overwrite)" in checked["unpassed"]
