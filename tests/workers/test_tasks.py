"""A task outlives what it works on: what went wrong is written on the row, and in the log."""

import errno
import os
import re

import pytest

from tests.webapp.cast import make_actor
from training.errors import InvalidInput
from webapp.core.errors import DISK_FULL
from webapp.datasets.models import Dataset, DatasetVersion
from workers import ingest, tasks

pytestmark = pytest.mark.django_db


@pytest.fixture
def version() -> DatasetVersion:
    project = make_actor().project
    dataset = Dataset.objects.create(project=project, name="sums")
    return DatasetVersion.objects.create(project=project, dataset=dataset, number=1)


def ingest_with(
    monkeypatch: pytest.MonkeyPatch, version: DatasetVersion, error: BaseException
) -> str:
    """What stands on the row."""

    def break_off(_: str) -> None:
        raise error

    monkeypatch.setattr(ingest, "validate_version", break_off)
    tasks.ingest_version(version.pk)
    version.refresh_from_db()
    assert version.status == "failed"
    return version.error


def test_what_nobody_foresaw_has_a_number_under_which_the_log_says_more(
    version: DatasetVersion, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = ingest_with(monkeypatch, version, ZeroDivisionError("of the house"))
    match = re.fullmatch(r"Internal error ([0-9a-f]{8}): the worker's log says more\.", said)
    assert match is not None
    assert f"{version.pk}: internal error {match[1]}" in caplog.text
    assert "ZeroDivisionError: of the house" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InvalidInput("row 3 has no answer"), "row 3 has no answer"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), DISK_FULL),
    ],
)
def test_what_people_can_mend_is_said_as_it_is(
    version: DatasetVersion, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    assert ingest_with(monkeypatch, version, error) == said


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(0)])
def test_a_process_that_is_to_end_ends(
    version: DatasetVersion, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        ingest_with(monkeypatch, version, error)
    version.refresh_from_db()
    assert version.status == "validating"
