"""REST of datasets beyond the upload: kinds, versions made of versions, analyses, rows as files."""

import json
from typing import Any

import pytest
from django.test import Client

from tests.webapp.datasets.conftest import GOOD, make_file, upload
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.datasets.models import DatasetVersion
from webapp.datasets.records import Analysis
from workers import analyses, ingest

QA = {"question": "1+1", "answer": "2"}


def make_client(actor: Actor) -> Client:
    _, secret = create_key(actor=actor, name="tests")
    return Client(headers={"X-API-Key": secret})


@pytest.fixture
def client(alice: Actor) -> Client:
    return make_client(alice)


def post(client: Client, path: str, body: Any) -> Any:
    answer = client.post(f"/rest/dataset-versions{path}", body, content_type="application/json")
    return {"status": answer.status_code, "body": answer.json()}


def test_columns_that_do_not_tell_are_answered_with_a_kind(alice: Actor, client: Client) -> None:
    version = upload(alice, QA)
    found = client.get(f"/rest/dataset-versions/{version.pk}").json()
    assert (found["status"], found["kind"]) == ("needs_decision", "")
    assert found["report"]["kinds"] == ["prompt_completion", "prompt"]
    path = f"/{version.pk}/decision"
    assert post(client, path, {})["status"] == 400
    refused = post(client, path, {"keep_valid": True})
    assert refused["body"]["error"]["field"] == "kind"
    assert post(client, path, {"kind": "poem"})["status"] == 400
    answer = post(client, path, {"kind": "prompt"})
    assert (answer["body"]["status"], answer["body"]["kind"]) == ("validating", "prompt")


def test_an_upload_may_name_its_kind(client: Client) -> None:
    body = {"name": "a", "file": make_file(QA), "kind": "prompt"}
    answer = client.post("/rest/dataset-versions", body)
    ingest.validate_version(answer.json()["id"])
    found = client.get(f"/rest/dataset-versions/{answer.json()['id']}").json()
    assert (found["status"], found["kind"]) == ("ready", "prompt")
    body = {"name": "a", "file": make_file(QA), "kind": "poem"}
    assert client.post("/rest/dataset-versions", body).status_code == 400


def test_a_split_is_made_and_found_again(alice: Actor, client: Client) -> None:
    version = upload(alice, *[{"text": f"text {number}"} for number in range(40)])
    body = {"split": {"held_out_share": 0.5, "seed": 1}, "name": "halves"}
    answer = post(client, f"/{version.pk}/derived", body)
    assert answer["status"] == 202
    assert [each["split"] for each in answer["body"]] == ["train", "held_out"]
    for each in answer["body"]:
        ingest.validate_version(each["id"])
    found = client.get(f"/rest/dataset-versions/{version.pk}/derived").json()
    assert sum(each["num_rows"] for each in found) == 40
    assert found[0]["derived_from"] == version.pk
    assert found[0]["derivation"]["split"]["seed"] == 1
    assert found[0]["dataset_name"] == "halves"


def test_a_split_that_is_sent_twice_with_one_key_is_made_once(alice: Actor, client: Client) -> None:
    version = upload(alice, GOOD, GOOD)
    body = {"filters": [{"filter": "duplicates"}]}
    for _ in range(2):
        client.post(
            f"/rest/dataset-versions/{version.pk}/derived",
            body,
            content_type="application/json",
            headers={"Idempotency-Key": "once"},
        )
    assert DatasetVersion.objects.count() == 2


def test_what_is_wrong_is_said_with_its_field(alice: Actor, client: Client) -> None:
    version = upload(alice, GOOD)
    answer = post(client, f"/{version.pk}/derived", {"filters": [{"filter": "magic"}]})
    assert (answer["status"], answer["body"]["error"]["field"]) == (400, "options")
    assert post(client, f"/{version.pk}/derived", {"filters": "x"})["status"] == 400
    assert post(client, f"/{version.pk}/analyses", {"kind": "poem"})["status"] == 400
    wrong = {"kind": "leakage", "options": {"against": {"a": 1}}}
    assert post(client, f"/{version.pk}/analyses", wrong)["status"] == 400


def test_an_analysis_is_asked_until_it_is_ready(alice: Actor, client: Client) -> None:
    version = upload(alice, GOOD, GOOD)
    body = {"kind": "near_duplicates", "options": {"threshold": 0.9}}
    first = post(client, f"/{version.pk}/analyses", body)["body"]
    assert (first["is_ready"], first["result"]) == (False, None)
    analyses.analyse(str(Analysis.objects.get().pk))
    second = post(client, f"/{version.pk}/analyses", body)["body"]
    assert (second["is_ready"], second["result"]["num_exact"]) == (True, 1)


def test_rows_are_downloaded_and_a_stranger_finds_nothing(
    alice: Actor, charlie: Actor, client: Client
) -> None:
    version = upload(alice, GOOD)
    answer = client.get(f"/rest/dataset-versions/{version.pk}/rows.jsonl")
    (line,) = b"".join(answer.streaming_content).splitlines()  # type: ignore[attr-defined]
    assert json.loads(line) == GOOD
    assert client.get(f"/rest/dataset-versions/{version.pk}/rows.exe").status_code == 404
    stranger = make_client(charlie)
    for path in ("rows.csv", "derived"):
        assert stranger.get(f"/rest/dataset-versions/{version.pk}/{path}").status_code == 404
    assert post(stranger, f"/{version.pk}/analyses", {"kind": "tokens"})["status"] == 404
    assert post(stranger, f"/{version.pk}/derived", {})["status"] == 404
