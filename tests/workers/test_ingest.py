"""Uploads become versions: what is bad is reported, and kept or left out as the user says."""

import json
from pathlib import Path

import pytest
from pytest_django import Settings

from webapp.datasets.models import Dataset, DatasetVersion, Preview
from webapp.fleet.services import add_base_model
from workers import ingest
from workers.preparation import prepare_owner

TINY = Path(__file__).parents[1] / "assets" / "tiny-chatml-1m"
GOOD = {"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]}
NO_ANSWER = {"messages": [{"role": "user", "content": "1+1"}]}

pytestmark = pytest.mark.django_db
Status = DatasetVersion.Status


@pytest.fixture(autouse=True)
def home(tmp_path: Path, settings: Settings) -> Path:
    settings.HONE_HOME = tmp_path
    return tmp_path


def upload(home: Path, content: bytes, filename: str = "rows.jsonl") -> DatasetVersion:
    owner = prepare_owner()
    dataset = Dataset.objects.create(project=owner.project, name="sums")
    (home / "uploads").mkdir()
    (home / "uploads" / "upload").write_bytes(content)
    return DatasetVersion.objects.create(
        project=owner.project,
        dataset=dataset,
        number=1,
        filename=filename,
        upload_path="uploads/upload",
    )


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def validate(version: DatasetVersion) -> DatasetVersion:
    ingest.validate_version(version.id)
    version.refresh_from_db()
    return version


def test_a_clean_file_becomes_ready_with_its_digest(home: Path) -> None:
    version = validate(upload(home, lines(GOOD, GOOD)))
    assert version.status == Status.READY
    assert (version.num_rows, version.num_bad) == (2, 0)
    assert len(version.digest) == 64
    assert (home / version.rows_path).read_text().count("\n") == 2


def test_bad_lines_wait_for_a_decision_with_number_and_reason(home: Path) -> None:
    version = validate(upload(home, lines(GOOD, NO_ANSWER) + b"{broken\n"))
    assert version.status == Status.NEEDS_DECISION
    assert (version.num_rows, version.num_bad) == (1, 2)
    assert [bad["number"] for bad in version.report["bad"]] == [2, 3]
    assert "assistant" in version.report["bad"][0]["reason"]
    assert not version.rows_path


def test_valid_rows_are_kept_only_when_the_user_says_so(home: Path) -> None:
    version = validate(upload(home, lines(GOOD, NO_ANSWER)))
    DatasetVersion.objects.update(status=Status.VALIDATING, keep_valid=True)
    version = validate(version)
    assert version.status == Status.READY
    assert version.num_rows == 1
    assert "1+1" in (home / version.rows_path).read_text()


def test_a_file_without_a_valid_row_fails_and_names_the_first_line(home: Path) -> None:
    version = validate(upload(home, lines({"foo": 1})))
    assert version.status == Status.FAILED
    assert "line 1" in version.error
    assert version.report["num_bad"] == 1


def test_an_image_is_no_dataset(home: Path) -> None:
    version = validate(upload(home, b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "rows.png"))
    assert version.status == Status.FAILED
    assert "rows.png" in version.error


def test_a_discarded_version_stays_discarded(home: Path) -> None:
    version = upload(home, lines(GOOD))
    DatasetVersion.objects.update(status=Status.DISCARDED)
    assert validate(version).status == Status.DISCARDED


def test_a_crash_of_the_worker_is_written_on_the_version(home: Path) -> None:
    version = upload(home, lines(GOOD))
    ingest.fail(version.id, "The disk is full.")
    version.refresh_from_db()
    assert version.status == Status.FAILED
    assert version.error == "The disk is full."


def test_a_preview_shows_tokens_of_which_the_assistants_are_weighted(home: Path) -> None:
    version = validate(upload(home, lines(GOOD)))
    tiny = add_base_model(path=str(TINY), names=["tiny"])
    preview = Preview.objects.create(version=version, base_model=tiny)
    ingest.preview_version(str(preview.pk))
    preview.refresh_from_db()
    assert preview.rows is not None
    tokens = preview.rows[0]["tokens"]
    assert "".join(t["text"] for t in tokens if t["weight"]).startswith("2")
    assert "1+1" in "".join(t["text"] for t in tokens if not t["weight"])
    assert preview.stats["longest_tokens"] == len(tokens)
    assert preview.stats["num_too_long"] == 0
