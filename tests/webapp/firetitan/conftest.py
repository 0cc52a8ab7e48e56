"""A program with a key, as the Fireworks wire sees it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client

from tests.webapp.cast import make_actor, make_base_model
from webapp.accounts.credentials import forget_actors
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.fleet.models import BaseModel


class Program:
    """Sends what the SDK sends; `status` and the answer are of the last request."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.account = actor.project.pk
        self.key, self.secret = create_key(actor=actor, name="test")
        self.client = Client()
        self.status = 0

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """`path` below the account, or a whole one that begins with a slash."""
        whole = path if path.startswith("/") else f"/v1/accounts/{self.account}/{path}"
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body)
        response = self.client.generic(
            method,
            whole,
            content,
            content_type="application/json",
            headers={"X-Api-Key": self.secret, **headers},
        )
        self.status = response.status_code
        assert response.headers["Content-Type"] == "application/json"
        return response.json()

    def read(self, path: str, **headers: str) -> Any:
        return self.send("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        return self.send("POST", path, body, **headers)

    def delete(self, path: str) -> Any:
        return self.send("DELETE", path)


@pytest.fixture(autouse=True)
def _no_remembered_keys() -> Iterator[None]:
    forget_actors()
    yield
    forget_actors()


@pytest.fixture
def base_model(db: None) -> BaseModel:
    return make_base_model()


@pytest.fixture
def program(db: None) -> Program:
    return Program(make_actor("alice"))


@pytest.fixture
def stranger(db: None) -> Program:
    return Program(make_actor("carol"))
