"""Uploads become versions; bad lines wait for a decision; previews are made once."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.files.base import ContentFile
from django.core.files.uploadedfile import SimpleUploadedFile, TemporaryUploadedFile
from django.utils.timezone import now
from pytest_django import DjangoCaptureOnCommitCallbacks
from pytest_django.fixtures import Settings

from tests.webapp.cast import make_viewer
from tests.webapp.datasets.conftest import BAD, GOOD, make_file, upload
from webapp.accounts.models import Actor
from webapp.core.errors import UserError
from webapp.datasets.models import Dataset, DatasetVersion, Preview
from webapp.datasets.services import (
    append_row,
    create_version,
    decide,
    delete_version,
    request_preview,
    retry_preview,
)
from webapp.fleet.models import BaseModel
from webapp.runs.models import Origin, Run
from workers import ingest

Status = DatasetVersion.Status


def test_an_upload_lies_in_its_own_folder_and_waits_for_validation(
    alice: Actor, home: Path
) -> None:
    version = create_version(actor=alice, name=" sums ", upload=make_file(GOOD))

    assert version.dataset.name == "sums"
    assert (version.number, version.status, version.format) == (1, Status.VALIDATING, "jsonl")
    assert version.upload_path == f"uploads/{version.pk}/upload.jsonl"
    assert (home / version.upload_path).stat().st_size == version.size_bytes
    assert version.created_by == alice.user


def test_the_next_upload_of_a_name_is_its_next_version(alice: Actor) -> None:
    first = create_version(actor=alice, name="sums", upload=make_file(GOOD))
    second = create_version(actor=alice, name="sums", upload=make_file(GOOD, GOOD))

    assert second.dataset == first.dataset
    assert (first.number, second.number) == (1, 2)


def test_the_same_name_in_another_project_is_another_dataset(alice: Actor, charlie: Actor) -> None:
    mine = create_version(actor=alice, name="sums", upload=make_file(GOOD))
    theirs = create_version(actor=charlie, name="sums", upload=make_file(GOOD))

    assert mine.dataset != theirs.dataset
    assert theirs.number == 1


def test_a_large_upload_is_moved_and_not_copied(alice: Actor, home: Path) -> None:
    large = TemporaryUploadedFile("rows.csv", "text/csv", 0, None)
    large.write(b"prompt,completion\na,b\n")
    large.flush()
    large.size = 22

    with large:
        version = create_version(actor=alice, name="sums", upload=large)

    assert (home / version.upload_path).read_bytes() == b"prompt,completion\na,b\n"
    assert list((home / "incoming").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "field", "complaint"),
    [
        ("rows.jsonl", b"", "file", "rows.jsonl is empty"),
        ("rows.xlsx", b"PK", "file", "rows.xlsx is of no known format"),
        ("rows", b"{}", "file", "rows is of no known format"),
    ],
)
def test_a_file_that_cannot_be_rows_is_refused_and_leaves_nothing(
    alice: Actor, home: Path, name: str, content: bytes, field: str, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint) as refused:
        create_version(actor=alice, name="sums", upload=SimpleUploadedFile(name, content))

    assert refused.value.field == field
    assert not Dataset.objects.exists()
    assert not (home / "uploads").exists()


def test_an_upload_over_the_limit_is_refused_with_both_sizes(
    alice: Actor, settings: Settings
) -> None:
    settings.MAX_UPLOAD_BYTES = 1024
    with pytest.raises(UserError, match=r"has 2\.0.KB; up to 1\.0.KB are taken"):
        create_version(actor=alice, name="sums", upload=ContentFile(b"x" * 2048, name="rows.jsonl"))


@pytest.mark.parametrize("name", ["", "   ", "n" * 121])
def test_a_dataset_needs_a_name_of_some_length(alice: Actor, name: str) -> None:
    with pytest.raises(UserError) as refused:
        create_version(actor=alice, name=name, upload=make_file(GOOD))
    assert refused.value.field == "name"


def test_a_path_in_the_file_name_is_only_a_name(alice: Actor, home: Path) -> None:
    file = ContentFile(b"{}", name="rows.jsonl")
    file.name = "..\\..\\etc/../evil.jsonl"
    version = create_version(actor=alice, name="sums", upload=file)

    assert version.filename == "evil.jsonl"
    assert (home / version.upload_path).parent == home / "uploads" / version.pk


def test_a_viewer_can_neither_upload_nor_decide_nor_delete(alice: Actor) -> None:
    version = upload(alice, GOOD, BAD)
    vera = make_viewer(alice)

    with pytest.raises(UserError, match="viewer"):
        create_version(actor=vera, name="sums", upload=make_file(GOOD))
    with pytest.raises(UserError, match="viewer"):
        decide(actor=vera, version=version, keep_valid=True)
    with pytest.raises(UserError, match="viewer"):
        delete_version(actor=vera, version=version)


def test_keeping_the_valid_rows_makes_the_version_ready_without_the_bad_ones(
    alice: Actor, home: Path
) -> None:
    version = upload(alice, GOOD, BAD)
    assert version.status == Status.NEEDS_DECISION

    decide(actor=alice, version=version, keep_valid=True)
    assert (version.status, version.keep_valid) == (Status.VALIDATING, True)
    ingest.validate_version(version.pk)

    version.refresh_from_db()
    assert (version.status, version.num_rows, version.num_bad) == (Status.READY, 1, 1)
    assert len((home / version.rows_path).read_text().splitlines()) == 1


def test_a_discarded_version_keeps_its_report_and_loses_its_file(
    alice: Actor,
    home: Path,
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    version = upload(alice, GOOD, BAD)
    with django_capture_on_commit_callbacks(execute=True):
        decide(actor=alice, version=version, keep_valid=False)

    assert version.status == Status.DISCARDED
    assert version.report["num_bad"] == 1
    assert not (home / version.upload_path).exists()


def test_only_the_first_decision_counts(alice: Actor) -> None:
    version = upload(alice, GOOD, BAD)
    decide(actor=alice, version=version, keep_valid=False)

    with pytest.raises(UserError, match="decided already"):
        decide(actor=alice, version=version, keep_valid=True)
    version.refresh_from_db()
    assert version.status == Status.DISCARDED


def test_a_stranger_cannot_decide(alice: Actor, charlie: Actor) -> None:
    version = upload(alice, GOOD, BAD)
    with pytest.raises(UserError):
        decide(actor=charlie, version=version, keep_valid=True)
    version.refresh_from_db()
    assert version.status == Status.NEEDS_DECISION


def test_a_preview_is_asked_for_once(alice: Actor, base_model: BaseModel) -> None:
    version = upload(alice, GOOD)
    first = request_preview(version=version, base_model=base_model)
    again = request_preview(version=version, base_model=base_model)

    assert first == again
    assert first.rows is None
    assert Preview.objects.count() == 1


def test_a_preview_whose_task_was_lost_is_asked_for_again(
    alice: Actor,
    base_model: BaseModel,
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    version = upload(alice, GOOD)
    preview = request_preview(version=version, base_model=base_model)
    Preview.objects.update(created_at=now() - timedelta(minutes=5))

    with django_capture_on_commit_callbacks() as sent:
        request_preview(version=version, base_model=base_model)
    with django_capture_on_commit_callbacks() as not_sent:
        request_preview(version=version, base_model=base_model)

    assert (len(sent), len(not_sent)) == (1, 0)
    assert Preview.objects.get() == preview


def test_a_failed_preview_can_be_tried_again(alice: Actor, base_model: BaseModel) -> None:
    version = upload(alice, GOOD)
    failed = request_preview(version=version, base_model=base_model)
    ingest.fail_preview(str(failed.pk), "no disk")

    again = retry_preview(version=version, base_model=base_model)
    assert again.pk != failed.pk
    assert again.error == ""


def test_a_version_that_is_not_ready_has_no_preview(alice: Actor, base_model: BaseModel) -> None:
    version = upload(alice, GOOD, BAD)
    with pytest.raises(UserError, match="not ready"):
        request_preview(version=version, base_model=base_model)


def test_deleting_the_last_version_deletes_the_dataset_and_the_files(
    alice: Actor,
    home: Path,
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    version = upload(alice, GOOD)
    with django_capture_on_commit_callbacks(execute=True):
        delete_version(actor=alice, version=version)

    assert not Dataset.objects.exists()
    assert list((home / "uploads").iterdir()) == []


def test_a_version_that_a_run_was_made_of_stays(
    alice: Actor, home: Path, base_model: BaseModel
) -> None:
    version = upload(alice, GOOD)
    Run.objects.create(
        project=alice.project,
        name="first",
        origin=Origin.BROWSER,
        base_model=base_model,
        rank=8,
        dataset_version=version,
    )
    with pytest.raises(UserError, match="runs or evaluation suites"):
        delete_version(actor=alice, version=version)
    assert (home / version.rows_path).exists()


def read_lines(version: DatasetVersion, home: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (home / version.rows_path).read_text().splitlines()]


def test_a_row_for_a_new_name_makes_a_dataset_of_one_row(alice: Actor, home: Path) -> None:
    version = append_row(actor=alice, name="kept", row=GOOD)
    ingest.validate_version(version.pk)
    version.refresh_from_db()
    assert (str(version), version.status, version.num_rows) == ("kept v1", Status.READY, 1)
    assert read_lines(version, home) == [GOOD]
    assert list((home / "incoming").iterdir()) == []


def test_another_row_makes_a_version_of_all_rows_and_leaves_the_old_one_as_it_is(
    alice: Actor, home: Path
) -> None:
    first = upload(alice, GOOD, GOOD, name="kept")
    second = append_row(actor=alice, name="kept", row=GOOD | {"answered_by": "tiny"})
    third = append_row(actor=alice, name="kept", row=GOOD)  # while v2 is still being validated
    for version in (second, third):
        ingest.validate_version(version.pk)
        version.refresh_from_db()
    assert [len(read_lines(each, home)) for each in (first, second, third)] == [2, 3, 4]
    assert read_lines(third, home)[2]["answered_by"] == "tiny"


def test_a_row_is_appended_to_the_newest_version_that_holds_rows(alice: Actor, home: Path) -> None:
    upload(alice, GOOD, name="kept")
    decide(actor=alice, version=upload(alice, GOOD, BAD, name="kept"), keep_valid=False)
    version = append_row(actor=alice, name="kept", row=GOOD)
    ingest.validate_version(version.pk)
    version.refresh_from_db()
    assert (version.number, len(read_lines(version, home))) == (3, 2)


def test_a_version_that_waits_for_a_decision_gets_no_row(alice: Actor) -> None:
    upload(alice, GOOD, BAD, name="kept")
    with pytest.raises(UserError, match="kept v1 is not ready"):
        append_row(actor=alice, name="kept", row=GOOD)


def test_a_row_does_not_drop_the_one_that_somebody_appends_meanwhile(alice: Actor) -> None:
    upload(alice, GOOD, name="kept")
    append_row(actor=alice, name="kept", row=GOOD)
    with pytest.raises(UserError, match="Somebody else changed kept"):
        create_version(actor=alice, name="kept", upload=make_file(GOOD), after=1)
    assert DatasetVersion.objects.count() == 2


def test_a_conversation_is_no_row_of_pairs(alice: Actor) -> None:
    upload(alice, {"prompt": "a", "chosen": "b", "rejected": "c"}, name="pairs")
    with pytest.raises(UserError, match="pairs v1 holds rows of the kind preference"):
        append_row(actor=alice, name="pairs", row=GOOD)


def test_a_conversation_joins_prompts_with_completions(alice: Actor, home: Path) -> None:
    upload(alice, {"prompt": "a", "completion": "b"}, name="kept")
    version = append_row(actor=alice, name="kept", row=GOOD)
    ingest.validate_version(version.pk)
    version.refresh_from_db()
    assert (version.kind, version.num_rows) == ("conversation", 2)
