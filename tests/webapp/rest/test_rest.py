"""REST as a program uses it: keys, projects, idempotency, errors of one shape, the schema."""

import errno
import json
from base64 import b64encode
from pathlib import Path

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.utils.timezone import now
from pytest_django import Settings

from webapp.accounts.idempotency import LONGEST_CREATE, RUNNING
from webapp.accounts.models import Actor, IdempotentRequest, Membership, Project, Role, User
from webapp.accounts.services import create_key, create_project, revoke_key
from webapp.datasets.models import DatasetVersion
from webapp.deployments.models import Deployment
from webapp.fleet.services import add_base_model
from webapp.runs.models import Run
from workers import ingest

TINY = Path(__file__).parents[2] / "assets" / "tiny-chatml-1m"
ROW = {"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]}
CONFIG = {"rank": 4, "learning_rate": 1e-3, "steps": 2, "batch_size": 1}

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, settings: Settings) -> None:
    settings.HONE_HOME = tmp_path
    (tmp_path / "incoming").mkdir()
    settings.FILE_UPLOAD_TEMP_DIR = tmp_path / "incoming"


def make_actor(name: str, role: str = Role.OWNER, project: Project | None = None) -> Actor:
    user = User.objects.create_user(username=name, is_staff=True)
    if project is None:
        project = create_project(user=user, name=f"{name}'s")
    else:
        Membership.objects.create(project=project, user=user, role=role)
    return Actor(user=user, project=project, role=role)


def make_client(actor: Actor) -> Client:
    _, secret = create_key(actor=actor, name="test")
    return Client(headers={"X-API-Key": secret})


@pytest.fixture
def alice() -> Actor:
    return make_actor("alice")


@pytest.fixture
def client(alice: Actor) -> Client:
    return make_client(alice)


@pytest.fixture
def stranger() -> Client:
    return make_client(make_actor("charlie"))


def upload(client: Client, content: bytes = json.dumps(ROW).encode()) -> str:
    file = SimpleUploadedFile("rows.jsonl", content)
    answer = client.post("/rest/dataset-versions", {"name": "sums", "file": file})
    assert answer.status_code == 202, answer.content
    version_id: str = answer.json()["id"]
    ingest.validate_version(version_id)
    return version_id


def launch(client: Client, version_id: str, **changes: object) -> dict[str, object]:
    add_base_model(path=str(TINY), names=["acme/tiny"])
    body = {"base_model": "acme/tiny", "dataset_version": version_id, "config": CONFIG} | changes
    answer = client.post("/rest/runs", body, content_type="application/json")
    result: dict[str, object] = answer.json()
    return result


def error_of(answer: object) -> str:
    return str(answer.json()["error"]["message"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"name": "' + b"x" * 2**23 + b'"}', b"\xff"])
def test_json_that_is_too_deep_too_large_or_broken_is_refused(client: Client, body: bytes) -> None:
    answer = client.post("/rest/keys", body, content_type="application/json")
    assert answer.status_code == 400
    assert error_of(answer).startswith("The body ")


def test_without_a_key_nothing_is_answered() -> None:
    answer = Client().get("/rest/runs")
    assert answer.status_code == 401
    assert answer.json()["error"]["message"]


def test_a_wrong_key_is_refused_in_a_sentence() -> None:
    answer = Client(headers={"X-API-Key": "tml-wrong"}).get("/rest/me")
    assert answer.status_code == 401
    assert error_of(answer) == "This API key is unknown or was revoked."


def test_a_revoked_key_is_refused(alice: Actor) -> None:
    key, secret = create_key(actor=alice, name="old")
    revoke_key(actor=alice, key_id=key.id)
    assert Client(headers={"X-API-Key": secret}).get("/rest/me").status_code == 401


def test_a_key_says_whose_it_is(client: Client, alice: Actor) -> None:
    assert client.get("/rest/me").json() == {
        "user": "alice",
        "project": alice.project.id,
        "project_name": "alice's",
        "role": "owner",
    }


def test_a_bearer_token_is_a_key_too(alice: Actor) -> None:
    _, secret = create_key(actor=alice, name="bearer")
    assert Client(headers={"Authorization": f"Bearer {secret}"}).get("/rest/me").status_code == 200


def test_a_new_key_is_shown_once(client: Client) -> None:
    answer = client.post("/rest/keys", {"name": "laptop"}, content_type="application/json")
    assert answer.json()["key"].startswith("tml-")
    assert "key" not in client.get("/rest/keys").json()["results"][0]


def test_three_calls_launch_a_run(client: Client) -> None:
    version_id = upload(client)
    version = client.get(f"/rest/dataset-versions/{version_id}").json()
    assert version["status"] == "ready"
    run = launch(client, version_id)
    assert run["status"] == "queued"
    assert run["origin"] == "rest"
    assert client.get(f"/rest/runs/{run['id']}").json()["config"]["steps"] == 2


def test_an_upload_without_rows_is_refused(client: Client) -> None:
    file = SimpleUploadedFile("rows.jsonl", b"")
    answer = client.post("/rest/dataset-versions", {"name": "sums", "file": file})
    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == "file"
    assert not DatasetVersion.objects.exists()


def test_bad_lines_wait_for_a_decision(client: Client) -> None:
    version_id = upload(client, json.dumps(ROW).encode() + b"\n{broken\n")
    path = f"/rest/dataset-versions/{version_id}"
    assert client.get(path).json()["status"] == "needs_decision"
    answer = client.post(f"{path}/decision", {"keep_valid": True}, content_type="application/json")
    assert answer.json()["status"] == "validating"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"base_model": "acme/huge"}, "This installation offers no base model acme/huge"),
        ({"dataset_version": "dsv-none"}, "There is no dataset version dsv-none"),
        ({"parent": "ckpt-none"}, "There is no checkpoint ckpt-none"),
        ({"config": {"rank": -1, "steps": 2}}, "rank"),
        ({"config": {"rank": 0, "alpha": 16, "steps": 2}}, "alpha"),
        ({"config": {"rank": 10_000, "steps": 2}}, "rank"),
        ({"config": {"learning_rate": -1, "steps": 2}}, "learning_rate"),
        ({"config": {"learning_rat": 1, "steps": 2}}, "learning_rat"),
        ({"config": {"steps": 2, "epochs": 1}}, "epochs"),
        ({"config": {"steps": 2, "eval_suite": "suite-of-somebody"}}, "eval_suite"),
        ({"config": {"steps": 2, "eval_suite": ["x"]}}, "eval_suite"),
        ({"parent": "ckpt-of-somebody"}, "parent"),
        ({"dataset_version": "dsv-of-somebody"}, "dataset_version"),
        ({"base_model": "acme/unknown"}, "acme/unknown"),
    ],
)
def test_a_run_that_cannot_be_is_refused_at_once(
    client: Client, changes: dict[str, object], expected: str
) -> None:
    answer = launch(client, upload(client), **changes)
    assert expected in str(answer["error"])
    assert not Run.objects.exists()


def test_a_repeated_create_returns_the_first_answer(client: Client) -> None:
    version_id = upload(client)
    add_base_model(path=str(TINY), names=["acme/tiny"])
    body = {"base_model": "acme/tiny", "dataset_version": version_id, "config": CONFIG}
    first, second = (
        client.post(
            "/rest/runs", body, content_type="application/json", headers={"Idempotency-Key": "k1"}
        )
        for _ in range(2)
    )
    assert first.status_code == second.status_code == 201
    assert first.json() == second.json()
    assert Run.objects.count() == 1


def test_a_create_whose_process_was_killed_is_taken_over_in_time(
    client: Client, alice: Actor
) -> None:
    """Its row says running for ever; nobody but a repeat can tell."""
    add_base_model(path=str(TINY), names=["acme/tiny"])

    def create() -> int:
        return client.post(
            "/rest/deployments",
            {"name": "one", "base_model": "acme/tiny"},
            content_type="application/json",
            headers={"Idempotency-Key": "k1"},
        ).status_code

    assert create() == 201
    Deployment.objects.all().delete()
    IdempotentRequest.objects.update(status=RUNNING, response=None)
    assert create() == 409
    IdempotentRequest.objects.update(created_at=now() - 2 * LONGEST_CREATE)
    assert create() == 201
    assert create() == 201
    assert Deployment.objects.count() == 1


def test_an_idempotency_key_does_not_serve_two_requests(client: Client) -> None:
    add_base_model(path=str(TINY), names=["acme/tiny"])
    headers = {"Idempotency-Key": "k1"}
    for name, status in (("one", 201), ("two", 400)):
        body = {"name": name, "base_model": "acme/tiny"}
        answer = client.post(
            "/rest/deployments", body, content_type="application/json", headers=headers
        )
        assert answer.status_code == status


def test_a_create_that_failed_may_be_tried_again(client: Client) -> None:
    headers = {"Idempotency-Key": "k1"}
    body = {"name": "one", "base_model": "acme/tiny"}
    first = client.post("/rest/deployments", body, content_type="application/json", headers=headers)
    assert first.status_code == 404
    add_base_model(path=str(TINY), names=["acme/tiny"])
    second = client.post(
        "/rest/deployments", body, content_type="application/json", headers=headers
    )
    assert second.status_code == 201


def test_another_projects_ids_do_not_exist(client: Client, stranger: Client) -> None:
    version_id = upload(client)
    run = launch(client, version_id)
    for path in (
        f"/rest/dataset-versions/{version_id}",
        f"/rest/runs/{run['id']}",
        f"/rest/runs/{run['id']}/metrics",
        f"/rest/runs/{run['id']}/log",
    ):
        assert client.get(path).status_code == 200
        assert stranger.get(path).status_code == 404
    assert stranger.post(f"/rest/runs/{run['id']}/stop").status_code == 404
    assert stranger.get("/rest/runs").json()["results"] == []


def test_a_viewer_reads_and_does_not_write(client: Client, alice: Actor) -> None:
    run = launch(client, upload(client))
    viewer = make_client(make_actor("vera", Role.VIEWER, alice.project))
    assert viewer.get(f"/rest/runs/{run['id']}").status_code == 200
    answer = viewer.post(f"/rest/runs/{run['id']}/stop")
    assert answer.status_code == 403
    assert "viewer" in error_of(answer)


def test_a_queued_run_is_paused_resumed_and_stopped(client: Client) -> None:
    run = launch(client, upload(client))
    states = [
        client.post(f"/rest/runs/{run['id']}/{action}").json()["status"]
        for action in ("pause", "resume", "stop")
    ]
    assert states == ["paused", "queued", "cancelled"]


def test_lists_are_paged_by_cursor(client: Client, alice: Actor) -> None:
    tiny = add_base_model(path=str(TINY), names=["acme/tiny"])
    for number in range(5):
        Run.objects.create(
            project=alice.project, name=f"run {number}", origin="rest", base_model=tiny, rank=4
        )
    first = client.get("/rest/runs?page_size=3").json()
    second = client.get(first["next"]).json()
    names = [run["name"] for page in (first, second) for run in page["results"]]
    assert names == [f"run {number}" for number in (4, 3, 2, 1, 0)]
    assert second["next"] is None


@pytest.mark.parametrize("text", ["zzz", "p=x", "p=2020-13-01", "o=-5&p=a"])
def test_a_damaged_cursor_is_refused(client: Client, text: str) -> None:
    cursor = b64encode(text.encode()).decode()
    assert client.get("/rest/runs", {"cursor": cursor}).status_code in (200, 404)
    if text.startswith("p="):
        assert client.get("/rest/runs", {"cursor": cursor}).status_code == 404


@pytest.mark.parametrize("after", ["-1", "\u00b2", "x", "9" * 5000])
def test_metrics_after_what_is_no_number_are_refused(client: Client, after: str) -> None:
    run = launch(client, upload(client))
    answer = client.get(f"/rest/runs/{run['id']}/metrics", {"after": after})
    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == "after"


def test_a_list_takes_the_same_number_of_queries_however_long_it_is(
    client: Client, alice: Actor, django_assert_max_num_queries: object
) -> None:
    tiny = add_base_model(path=str(TINY), names=["acme/tiny"])
    for number in range(40):
        Run.objects.create(
            project=alice.project, name=f"run {number}", origin="rest", base_model=tiny, rank=4
        )
    client.get("/rest/runs")
    with django_assert_max_num_queries(3):  # type: ignore[operator]
        assert len(client.get("/rest/runs").json()["results"]) == 40


def test_every_path_has_its_place_in_the_schema(client: Client) -> None:
    schema = Client().get("/rest/schema?format=json").json()
    assert len(schema["paths"]) > 30
    assert "/rest/runs/{run_id}/learning-rate" in schema["paths"]


def test_the_documentation_is_served_from_here() -> None:
    page = Client().get("/rest/").content.decode()
    assert "swagger-ui" in page
    assert "cdn" not in page


def test_a_full_disk_is_said_and_nothing_is_stored(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", raise_disk_full)
    file = SimpleUploadedFile("rows.jsonl", b"{}")
    answer = client.post("/rest/dataset-versions", {"name": "sums", "file": file})
    assert answer.status_code == 507
    assert error_of(answer).startswith("The server's disk is full")
    assert not DatasetVersion.objects.exists()


def test_a_bug_is_answered_with_a_number_that_the_log_has_too(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Path, "mkdir", raise_bug)
    file = SimpleUploadedFile("rows.jsonl", b"{}")
    answer = client.post("/rest/dataset-versions", {"name": "sums", "file": file})
    assert answer.status_code == 500
    number = error_of(answer).removeprefix("Internal error ").partition(".")[0]
    assert number in caplog.text
    assert "of the house" in caplog.text
    assert "of the house" not in answer.content.decode()


def raise_disk_full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def raise_bug(*_: object, **__: object) -> None:
    raise ZeroDivisionError("of the house")


def test_a_forecast_creates_nothing(client: Client) -> None:
    version_id = upload(client)
    add_base_model(path=str(TINY), names=["acme/tiny"])
    body = {"base_model": "acme/tiny", "dataset_version": version_id, "config": CONFIG}
    answer = client.post("/rest/runs/forecast", body, content_type="application/json").json()
    assert (answer["num_rows"], answer["num_steps"]) == (1, 2)
    assert answer["seconds"] is None
    assert not Run.objects.exists()


def test_a_version_of_which_runs_were_made_is_not_deleted(client: Client) -> None:
    version_id = upload(client)
    path = f"/rest/dataset-versions/{version_id}"
    launch(client, version_id)
    assert "runs" in error_of(client.delete(path))
    Run.objects.all().delete()
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404


def test_an_owner_adds_members_and_a_member_does_not(client: Client, alice: Actor) -> None:
    User.objects.create_user(username="bob")
    body = {"username": "bob", "role": "member"}
    assert client.post("/rest/members", body, content_type="application/json").status_code == 201
    assert {"username": "bob", "role": "member"} in client.get("/rest/members").json()
    mia = make_client(make_actor("mia", Role.MEMBER, alice.project))
    answer = mia.post("/rest/members", body, content_type="application/json")
    assert "Only an owner" in error_of(answer)


def test_a_question_is_cancelled(client: Client) -> None:
    add_base_model(path=str(TINY), names=["acme/tiny"])
    body = {"base_model": "acme/tiny", "messages": [{"role": "user", "content": "Hi"}]}
    call = client.post("/rest/calls", body, content_type="application/json").json()
    assert client.delete(f"/rest/calls/{call['id']}").json()["status"] == "cancelled"
