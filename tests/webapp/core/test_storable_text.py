"""A NUL in an address reaches no query: PostgreSQL would refuse it, where SQLite finds nothing."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from django.conf import settings
from django.db import DataError, connection
from django.test import Client

from tests.webapp.cast import make_actor, make_run, sign_in
from webapp.accounts.consumers import ProjectConsumer
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.runs.consumers import RunConsumer

pytestmark = pytest.mark.django_db

NAMED = (
    *("/runs/a%00b/", "/runs/a%00b/stats/", "/datasets/versions/a%00b/", "/checkpoints/a%00b/"),
    *("/deployments/a%00b/", "/evals/a%00b/", "/traces/a%00b", "/rest/runs/a%00b"),
    *("/rest/base-models/a%00b", "/rest/aliases/a%00b", "/api/v1/training_runs/a%00b"),
    *(
        "/v1/accounts/a%00b/models/c%00d",
        "/evals/aliases/a%00b/",
        "/checkpoints/lineage/?focus=a%00b",
    ),
    *("/evals/compare/?evaluations=a%00b&baseline=%00", "/evals/compare/?a=a%00b&b=%00"),
)
ASKED = (
    *("/runs/?q=a%00b", "/datasets/?q=%00", "/checkpoints/?base_model=%00", "/deployments/?q=%00"),
    *("/evals/?suite=a%00b", "/rest/runs?status=%00", "/rest/checkpoints?run=a%00b", "/?next=%00"),
    "/evals/matrix/?run=a%00b",
)


@pytest.fixture
def alice() -> Actor:
    return make_actor()


@pytest.fixture
def client(alice: Actor) -> Client:
    """A browser and a program at once."""
    _, secret = create_key(actor=alice, name="laptop")
    browser = sign_in(alice)
    browser.defaults["HTTP_X_API_KEY"] = secret
    return browser


@pytest.fixture(autouse=True)
def _like_postgresql(alice: Actor) -> Iterator[None]:
    def refuse(
        execute: Callable[..., Any], sql: str, params: Sequence[object] | None, *rest: Any
    ) -> Any:
        if any(isinstance(each, str) and "\0" in each for each in params or ()):
            raise DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
        return execute(sql, params, *rest)

    with connection.execute_wrapper(refuse):
        yield


@pytest.mark.parametrize("url", NAMED)
def test_nothing_is_named_with_a_nul(client: Client, url: str) -> None:
    assert client.get(url).status_code in (403, 404)


@pytest.mark.parametrize("url", ASKED)
def test_what_is_asked_for_with_a_nul_is_not_found_or_refused(client: Client, url: str) -> None:
    assert client.get(url).status_code in (200, 400, 404)


@pytest.mark.parametrize(
    ("url", "field"),
    [
        *(("/projects/switch/", "project"), ("/runs/new/", "dataset_version")),
        *(("/deployments/new/", "checkpoint"), ("/settings/", "name")),
    ],
)
def test_a_form_with_a_nul_is_refused_by_its_field(client: Client, url: str, field: str) -> None:
    answer = client.post(url, {field: "a\0b"})
    assert answer.status_code == 400
    assert f"{field}&#x27; of the form has a NUL character" in answer.content.decode()


def test_a_session_with_a_nul_is_nobodys() -> None:
    cookie = f'{settings.SESSION_COOKIE_NAME}="aaaaaaaaaaaa\\000"'
    assert Client().get("/runs/", headers={"cookie": cookie}).status_code == 302


def test_a_socket_with_a_nul_in_its_path_is_refused(alice: Actor) -> None:
    run = make_run(alice)
    for consumer, ids in (
        (RunConsumer(), {"run_id": f"{run.pk[:-1]}\0"}),
        (ProjectConsumer(), {"project_id": "\0"}),
    ):
        consumer.scope = {"user": alice.user, "url_route": {"kwargs": ids}}
        assert consumer.find_group() == ""
