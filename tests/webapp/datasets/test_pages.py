"""Pages of datasets, as a browser asks for them."""

import re

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from pytest_django.fixtures import Settings

from tests.webapp.cast import count_queries, make_viewer, sign_in
from tests.webapp.datasets.conftest import BAD, GOOD, make_file, upload
from webapp.accounts.models import Actor
from webapp.datasets.models import DatasetVersion
from webapp.datasets.services import create_version, request_preview
from webapp.fleet.models import BaseModel
from workers import ingest

Status = DatasetVersion.Status


def read(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200, response.content[:500]
    return response.content.decode()


def test_an_empty_list_shows_what_a_row_of_each_format_looks_like(browser: Client) -> None:
    page = read(browser, "/datasets/")
    assert "No datasets yet" in page
    assert "&quot;completion&quot;: &quot;Paris&quot;" in page
    assert "prompt,completion" in page
    assert 'href="/datasets/new/"' in page


def test_the_list_shows_each_dataset_with_its_newest_version(alice: Actor, browser: Client) -> None:
    upload(alice, GOOD)
    newest = upload(alice, GOOD, BAD)
    page = read(browser, "/datasets/")
    assert page.count('class="name"') == 1
    assert f"/datasets/versions/{newest.pk}/" in page
    assert "needs decision" in page


def test_the_list_can_be_filtered_by_name(alice: Actor, browser: Client) -> None:
    upload(alice, GOOD, name="sums")
    upload(alice, GOOD, name="letters")
    page = read(browser, "/datasets/?q=LETT")
    assert "letters" in page
    assert "sums" not in page


def test_the_list_takes_the_same_queries_for_one_dataset_and_for_five(
    alice: Actor, browser: Client
) -> None:
    upload(alice, GOOD, name="first")
    once = count_queries(browser, "/datasets/")
    for number in range(4):
        upload(alice, GOOD, name=f"more {number}")
        upload(alice, GOOD, name=f"more {number}")
    assert count_queries(browser, "/datasets/") == once


def test_a_dataset_shows_its_versions_in_as_many_queries_as_one(
    alice: Actor, browser: Client
) -> None:
    version = upload(alice, GOOD)
    url = f"/datasets/{version.dataset_id}/"
    once = count_queries(browser, url)
    upload(alice, GOOD)
    upload(alice, GOOD)
    assert count_queries(browser, url) == once
    assert ">v3</a>" in read(browser, url)


def test_an_upload_leads_to_its_version_which_says_that_it_is_read(browser: Client) -> None:
    answer = browser.post("/datasets/new/", {"name": "sums", "file": make_file(GOOD)})
    version = DatasetVersion.objects.get()
    assert answer.headers["Location"] == f"/datasets/versions/{version.pk}/"
    page = read(browser, answer.headers["Location"])
    assert "Reading rows.jsonl" in page
    assert f'hx-get="/datasets/versions/{version.pk}/status/"' in page


@pytest.mark.parametrize(
    ("name", "file", "complaint"),
    [
        ("sums", SimpleUploadedFile("rows.jsonl", b""), "rows.jsonl is empty"),
        ("sums", SimpleUploadedFile("rows.docx", b"words"), "of no known format"),
        ("sums", None, "Choose a file"),
        (" ", SimpleUploadedFile("rows.jsonl", b"{}"), "A dataset needs a name."),
    ],
)
def test_what_is_wrong_with_an_upload_stands_beside_its_field(
    browser: Client, name: str, file: SimpleUploadedFile | None, complaint: str
) -> None:
    data = {"name": name, "file": file} if file else {"name": name}
    answer = browser.post("/datasets/new/", data)
    assert answer.status_code == 400
    assert complaint in answer.content.decode()
    assert not DatasetVersion.objects.exists()


def test_an_upload_over_the_limit_is_refused_beside_the_file(
    browser: Client, settings: Settings
) -> None:
    settings.MAX_UPLOAD_BYTES = 10
    answer = browser.post("/datasets/new/", {"name": "sums", "file": make_file(GOOD)})
    assert answer.status_code == 400
    assert "Split it into several datasets" in answer.content.decode()


def test_the_status_reloads_the_page_once_validation_has_ended(
    alice: Actor, browser: Client
) -> None:
    version = create_version(actor=alice, name="sums", upload=make_file(GOOD))
    url = f"/datasets/versions/{version.pk}/status/"
    assert "HX-Refresh" not in browser.get(url).headers
    ingest.validate_version(version.pk)
    assert browser.get(url).headers["HX-Refresh"] == "true"


def test_bad_lines_are_shown_by_number_and_reason_and_counted_by_kind(
    alice: Actor, browser: Client
) -> None:
    version = upload(alice, GOOD, BAD, {"foo": 1}, BAD)
    page = read(browser, f"/datasets/versions/{version.pk}/")
    assert "3 of 4 lines cannot be used" in page
    assert "Keep the valid row" in page
    assert "no assistant turn: 2" in page
    assert "the row has no assistant turn" in page


def test_bad_lines_are_paged(alice: Actor, browser: Client) -> None:
    version = upload(alice, GOOD, *[BAD] * 45)
    url = f"/datasets/versions/{version.pk}/"
    assert "1 to 20 of 45 lines" in read(browser, url)
    assert "41 to 45 of 45 lines" in read(browser, f"{url}?page=3")


def test_the_decision_buttons_keep_or_discard(alice: Actor, browser: Client) -> None:
    kept, discarded = upload(alice, GOOD, BAD), upload(alice, GOOD, BAD)
    browser.post(f"/datasets/versions/{kept.pk}/decide/", {"keep_valid": "1"})
    browser.post(f"/datasets/versions/{discarded.pk}/decide/", {"keep_valid": "0"})
    kept.refresh_from_db()
    discarded.refresh_from_db()
    assert (kept.status, discarded.status) == (Status.VALIDATING, Status.DISCARDED)
    page = read(browser, f"/datasets/versions/{kept.pk}/")
    assert "Writing the valid rows" in page
    assert "was discarded" in read(browser, f"/datasets/versions/{discarded.pk}/")


def test_a_file_without_a_single_valid_row_says_why(alice: Actor, browser: Client) -> None:
    version = upload(alice, {"foo": 1})
    page = read(browser, f"/datasets/versions/{version.pk}/")
    assert "cannot be used" in page
    assert "No row is valid" in page
    assert "Launch a run" not in page


def test_a_ready_version_offers_a_run_and_its_digest(
    alice: Actor, browser: Client, base_model: BaseModel
) -> None:
    version = upload(alice, GOOD)
    page = read(browser, f"/datasets/versions/{version.pk}/")
    assert f'href="/runs/new/?version={version.pk}"' in page
    assert version.digest in page
    assert f"preview/?base_model={base_model.pk}" in page


def test_a_preview_highlights_exactly_what_the_assistant_says(
    alice: Actor, browser: Client, base_model: BaseModel
) -> None:
    version = upload(alice, GOOD)
    url = f"/datasets/versions/{version.pk}/preview/?base_model={base_model.pk}"
    assert "A worker is turning" in read(browser, url)

    ingest.preview_version(str(request_preview(version=version, base_model=base_model).pk))
    page = read(browser, url)
    learned = re.findall(r"<b[^>]*title[^>]*>([^<]*)</b>", page)
    assert "".join(learned) == "2&lt;|im_end|&gt;"
    assert "\u21b5\n" in page


def test_a_failed_preview_says_why_and_can_be_tried_again(
    alice: Actor, browser: Client, base_model: BaseModel
) -> None:
    version = upload(alice, GOOD)
    preview = request_preview(version=version, base_model=base_model)
    ingest.fail_preview(str(preview.pk), "no disk")
    url = f"/datasets/versions/{version.pk}/preview/?base_model={base_model.pk}"
    page = read(browser, url)
    assert "no disk" in page
    assert "Try again" in page
    assert "A worker is turning" in read(browser, f"{url}&retry=1")


def test_a_preview_by_an_unknown_base_model_is_not_there(alice: Actor, browser: Client) -> None:
    version = upload(alice, GOOD)
    answer = browser.get(f"/datasets/versions/{version.pk}/preview/?base_model=base-nothing")
    assert answer.status_code == 404


def test_another_projects_datasets_do_not_exist(alice: Actor, charlie: Actor) -> None:
    version = upload(alice, GOOD, BAD)
    stranger = sign_in(charlie)
    urls = [
        f"/datasets/{version.dataset_id}/",
        f"/datasets/versions/{version.pk}/",
        f"/datasets/versions/{version.pk}/status/",
        f"/datasets/versions/{version.pk}/preview/",
    ]
    assert [stranger.get(url).status_code for url in urls] == [404] * 4
    actions = [f"/datasets/versions/{version.pk}/{verb}/" for verb in ("decide", "delete")]
    assert [stranger.post(url).status_code for url in actions] == [404] * 2
    assert "sums" not in read(stranger, "/datasets/")


def test_a_viewer_reads_and_finds_no_button_that_writes(alice: Actor) -> None:
    version = upload(alice, GOOD, BAD)
    viewer = sign_in(make_viewer(alice))
    page = read(viewer, f"/datasets/versions/{version.pk}/")
    assert "2 lines cannot be used" in page
    assert "Keep the" not in page
    assert viewer.post("/datasets/new/", {"name": "x"}).status_code == 400
    answer = viewer.post(f"/datasets/versions/{version.pk}/decide/", {"keep_valid": "1"})
    assert "viewer" in answer.content.decode()
    version.refresh_from_db()
    assert version.status == Status.NEEDS_DECISION


def test_a_deleted_version_is_gone_from_the_list(alice: Actor, browser: Client) -> None:
    version = upload(alice, GOOD)
    answer = browser.post(f"/datasets/versions/{version.pk}/delete/", follow=True)
    assert "sums v1 was deleted." in answer.content.decode()
    assert "No datasets yet" in answer.content.decode()


@pytest.mark.django_db
def test_who_is_not_signed_in_is_asked_to() -> None:
    answer = Client().get("/datasets/")
    assert answer.status_code == 302
    assert "/sign-in/" in answer.headers["Location"]


QA = {"question": "1+1", "answer": "2"}


def test_columns_that_do_not_tell_ask_for_the_kind(alice: Actor, browser: Client) -> None:
    version = upload(alice, QA)
    url = f"/datasets/versions/{version.pk}/"
    page = read(browser, url)
    assert "The columns do not tell what a row is." in page
    assert 'value="prompt_completion"' in page
    assert 'value="prompt"' in page
    assert browser.post(f"{url}decide/", {"keep_valid": "1"}).status_code == 400
    assert browser.post(f"{url}decide/", {"kind": "poem"}).status_code == 400
    browser.post(f"{url}decide/", {"kind": "prompt"})
    ingest.validate_version(version.pk)
    version.refresh_from_db()
    assert (version.status, version.kind, version.num_rows) == (Status.READY, "prompt", 1)
    assert "Prompts with a reference answer" in read(browser, url)
    assert browser.post(f"{url}decide/", {"kind": "prompt"}).status_code == 400


def test_a_kind_that_was_chosen_is_what_the_lines_are_checked_as(
    alice: Actor, browser: Client
) -> None:
    browser.post("/datasets/new/", {"name": "a", "file": make_file(QA), "kind": "preference"})
    version = DatasetVersion.objects.get()
    ingest.validate_version(version.pk)
    page = read(browser, f"/datasets/versions/{version.pk}/")
    assert "chosen is missing: a pair needs both sides" in page


def test_a_preview_of_a_pair_shows_both_sides(
    alice: Actor, browser: Client, base_model: BaseModel
) -> None:
    version = upload(alice, {"prompt": "1+1", "chosen": "2", "rejected": "3"})
    ingest.preview_version(str(request_preview(version=version, base_model=base_model).pk))
    page = read(browser, f"/datasets/versions/{version.pk}/preview/?base_model={base_model.pk}")
    assert "Row 1, chosen" in page
    assert "Row 1, rejected" in page


def test_a_file_that_cannot_be_used_leads_to_the_upload_of_its_next_version(
    alice: Actor, browser: Client
) -> None:
    version = upload(alice, {"foo": 1}, name="sums & more/1")
    page = read(browser, f"/datasets/versions/{version.pk}/")
    address = "/datasets/new/?name=sums%20%26%20more%2F1"
    assert f'href="{address}"' in page
    assert 'value="sums &amp; more/1"' in read(browser, address)
