"""Pairs from documents, as a browser and a program review them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from pytest_django.fixtures import Settings

from tests.webapp.cast import make_actor, make_viewer, sign_in
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.datasets.generations import begin_asking, end_asking, record_pairs
from webapp.datasets.models import DatasetVersion
from webapp.datasets.records import GeneratedPair, Generation, Passage
from webapp.fleet.models import BaseModel
from webapp.fleet.services import add_base_model
from workers import ingest

TINY = Path(__file__).parents[2] / "assets" / "tiny-chatml-1m"
Status = Generation.Status

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def home(tmp_path: Path, settings: Settings) -> Path:
    settings.HONE_HOME = tmp_path
    return tmp_path


@pytest.fixture
def alice() -> Actor:
    return make_actor("alice")


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


@pytest.fixture
def base_model() -> BaseModel:
    return add_base_model(path=str(TINY), names=["acme/tiny"])


def document(name: str = "town.md", content: bytes = b"# Rivers\n\nThe Vltava.") -> Any:
    return SimpleUploadedFile(name, content)


def make_form(base_model: BaseModel, **changes: Any) -> dict[str, Any]:
    return {
        "documents": document(),
        "name": "towns",
        "target": base_model.pk,
        "num_pairs": "2",
        "passage_characters": "500",
        "max_tokens": "64",
        "temperature": "0",
        "seed": "1",
    } | changes


def make_pairs(generation: Generation) -> list[GeneratedPair]:
    """As a worker does it, with two pairs of one passage."""
    passage = Passage(
        generation=generation, number=1, document="town.md", place="Rivers", text="The Vltava."
    )
    assert begin_asking(generation, [passage])
    assert not begin_asking(generation, [passage])
    row = generation.passages.get()
    for _ in range(2):
        record_pairs(row, [("Which river?", "The Vltava."), ("Which hill?", "None.")])
    end_asking(generation)
    return list(GeneratedPair.objects.order_by("number"))


@pytest.fixture
def generation(browser: Client, base_model: BaseModel) -> Generation:
    answer = browser.post("/generations/new/", make_form(base_model))
    assert answer.status_code == 302, re.findall(rb"<span>(.*?)</span>", answer.content)
    return Generation.objects.get()


def read(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200
    return response.content.decode()


def test_documents_are_kept_and_the_page_says_who_is_asked(
    browser: Client, generation: Generation, home: Path
) -> None:
    assert generation.options["num_pairs"] == 2
    (kept,) = generation.documents
    assert (kept["name"], (home / kept["path"]).read_bytes()[:8]) == ("town.md", b"# Rivers")
    page = read(browser, f"/generations/{generation.pk}/")
    assert "acme/tiny was asked about" in page
    assert "Cancel" in page
    assert "towns" in read(browser, "/generations/")


def test_pairs_are_accepted_corrected_and_rejected_and_become_a_version(
    browser: Client, generation: Generation, home: Path
) -> None:
    url = f"/generations/{generation.pk}/"
    first, second = make_pairs(generation)
    assert "Accept all 2" in read(browser, url)
    assert browser.post(f"{url}finish/").status_code == 400
    browser.post(f"{url}pairs/{second.pk}/", {"state": "rejected"})
    text = {"question": "Which river is it?", "answer": "The Vltava."}
    card = browser.post(f"{url}pairs/{first.pk}/", text).content.decode()
    assert "Which river is it?" in card
    assert "accepted" in card
    assert "corrected" in card
    answer = browser.post(f"{url}finish/")
    version = DatasetVersion.objects.get()
    assert answer.headers["Location"] == f"/datasets/versions/{version.pk}/"
    ingest.validate_version(version.pk)
    version.refresh_from_db()
    assert (version.status, version.kind, version.num_rows) == ("ready", "prompt_completion", 1)
    row = json.loads((home / version.rows_path).read_text())
    assert row["messages"][0]["content"] == "Which river is it?"
    assert (row["document"], row["place"], row["passage"]) == ("town.md", "Rivers", "The Vltava.")
    page = read(browser, f"/datasets/versions/{version.pk}/")
    assert "1 of 2 pairs that acme/tiny wrote about town.md" in page
    assert browser.post(f"{url}pairs/{first.pk}/", {"state": "rejected"}).status_code == 400
    assert browser.post(f"{url}finish/").status_code == 400
    assert f"/datasets/versions/{version.pk}/" in read(browser, url)


def test_all_that_nobody_decided_about_is_accepted_at_once(
    browser: Client, generation: Generation
) -> None:
    first, second = make_pairs(generation)
    url = f"/generations/{generation.pk}/"
    browser.post(f"{url}pairs/{first.pk}/", {"state": "rejected"})
    browser.post(f"{url}accept/")
    second.refresh_from_db()
    first.refresh_from_db()
    assert (first.state, second.state) == ("rejected", "accepted")
    assert "Which hill?" not in read(browser, f"{url}?state=rejected")


def test_a_generation_is_cancelled_and_deleted(
    browser: Client, generation: Generation, home: Path
) -> None:
    url = f"/generations/{generation.pk}/"
    browser.post(f"{url}cancel/")
    generation.refresh_from_db()
    assert generation.status == Status.CANCELLED
    assert browser.post(f"{url}cancel/").status_code == 400
    assert browser.post(f"{url}dance/").status_code == 404
    browser.post(f"{url}delete/")
    assert not Generation.objects.exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"documents": document("a.docx")}, "a.docx is of no known format"),
        ({"documents": document("a.md", b"")}, "a.md is empty"),
        ({"documents": ""}, "Choose a document"),
        ({"name": " "}, "A dataset needs a name"),
        ({"target": "base-none"}, "Select a valid choice"),
        ({"num_pairs": "900"}, "too large"),
        ({"temperature": "hot"}, "no number"),
    ],
)
def test_what_is_wrong_stands_in_the_form_and_nothing_is_kept(
    browser: Client, base_model: BaseModel, home: Path, changes: dict[str, Any], complaint: str
) -> None:
    answer = browser.post("/generations/new/", make_form(base_model, **changes))
    assert answer.status_code == 400
    assert complaint in answer.content.decode()
    assert not Generation.objects.exists()
    assert not list((home / "documents").glob("*"))


@pytest.mark.parametrize("text", [{"question": " ", "answer": "x"}, {"answer": "x" * 4001}, {}])
def test_a_correction_needs_words_and_not_too_many(
    browser: Client, generation: Generation, text: dict[str, str]
) -> None:
    first, _ = make_pairs(generation)
    url = f"/generations/{generation.pk}/pairs/{first.pk}/"
    assert browser.post(url, text).status_code == 400
    first.refresh_from_db()
    assert (first.state, first.question) == ("proposed", "Which river?")


def test_a_viewer_reads_and_a_stranger_finds_nothing(alice: Actor, generation: Generation) -> None:
    first, _ = make_pairs(generation)
    url = f"/generations/{generation.pk}/"
    viewer = sign_in(make_viewer(alice))
    page = read(viewer, url)
    assert "Which river?" in page
    assert "Accept" not in page.replace("Accepted", "")
    assert viewer.post(f"{url}pairs/{first.pk}/", {"state": "accepted"}).status_code == 400
    assert viewer.post(f"{url}accept/").status_code == 400
    stranger = sign_in(make_actor("charlie"))
    assert stranger.get(url).status_code == 404
    assert stranger.post(f"{url}finish/").status_code == 404


def test_a_program_does_the_same_by_rest(alice: Actor, base_model: BaseModel) -> None:
    _, secret = create_key(actor=alice, name="tests")
    client = Client(headers={"X-API-Key": secret})
    form = {"name": "towns", "documents": document(), "target": base_model.pk}
    answer = client.post("/rest/generations", form)
    assert answer.status_code == 202, answer.content
    url = f"/rest/generations/{answer.json()['id']}"
    wrong = client.post("/rest/generations", form | {"documents": document(), "num_pairs": 99})
    assert (wrong.status_code, wrong.json()["error"]["field"]) == (400, "num_pairs")
    make_pairs(Generation.objects.get())
    first, second = client.get(f"{url}/pairs").json()
    assert (first["question"], first["place"]) == ("Which river?", "Rivers")
    json_type = "application/json"
    path = f"{url}/pairs/{first['id']}"
    patched = client.patch(path, {"state": "rejected"}, content_type=json_type)
    assert patched.json()["state"] == "rejected"
    assert client.patch(path, {}, content_type=json_type).status_code in (400, 404)
    client.post(url, {"act": "accept_rest"}, content_type=json_type)
    made = client.post(url, {"act": "finish"}, content_type=json_type)
    assert (made.status_code, made.json()["kind"]) == (202, "prompt_completion")
    assert client.get(url).json()["version"] == made.json()["id"]
    assert client.delete(url).status_code == 204
    assert client.get(url).status_code == 404
    assert second["state"] == "proposed"
