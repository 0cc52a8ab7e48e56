"""A program with a key, as the Tinker wire sees it."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from django.test import Client

from tests.webapp.cast import make_actor, make_base_model
from training.types import Datum, ForwardBackward
from webapp.accounts.credentials import forget_actors
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.fleet.models import BaseModel
from webapp.wire import passes


class Program:
    """Sends what the SDK sends; `status` and `answer` are of the last request."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.key, self.secret = create_key(actor=actor, name="test")
        self.client = Client()
        self.status = 0

    def send(self, method: str, path: str, body: bytes | dict[str, Any], **options: Any) -> Any:
        is_json = isinstance(body, dict)
        response = self.client.generic(
            method,
            f"/api/v1/{path}",
            json.dumps(body).encode() if is_json else body,
            content_type="application/json" if is_json else passes.PROTOBUF,
            headers={"X-API-Key": self.secret, **options},
        )
        self.status = response.status_code
        return response.json() if response.content else None

    def post(self, path: str, /, **fields: Any) -> Any:
        return self.send("POST", path, fields)

    def read(self, path: str) -> Any:
        return self.send("GET", path, {})

    def open_session(self) -> str:
        return str(self.post("create_session", tags=[], sdk_version="0.38.0")["session_id"])

    def open_model(self, base_model: BaseModel, **lora: Any) -> str:
        session = self.open_session()
        answer = self.post(
            "create_model",
            session_id=session,
            model_seq_id=0,
            base_model=base_model.name,
            lora_config={"rank": 8, **lora},
        )
        return str(answer["model_id"])

    def train(self, model_id: str, seq: int, request: ForwardBackward | None = None) -> Any:
        body = passes.encode_forward_backward(model_id, seq, request or make_request())
        return self.send("POST", "forward_backward", body)


def make_datum(num_tokens: int = 4, **inputs: Any) -> Datum:
    tokens = np.arange(1, num_tokens + 1)
    return Datum(tokens=tokens, inputs={"target_tokens": tokens + 1, **inputs})


def make_request(*data: Datum, **options: Any) -> ForwardBackward:
    return ForwardBackward(data=data or (make_datum(),), **options)


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


@pytest.fixture
def model_id(program: Program, base_model: BaseModel) -> str:
    return program.open_model(base_model)
