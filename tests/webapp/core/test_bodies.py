"""Bodies that are too large or that no database stores are refused, whoever sends them."""

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from pytest_django import Settings

from webapp.core.bodies import BoundedBodies, parse_json
from webapp.core.errors import UserError
from webapp.core.threads import Receive, Scope, Send


class Reader:
    """An application that reads a body to its end, as Django does, and answers 200."""

    def __init__(self) -> None:
        self.num_bytes = 0

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            self.num_bytes += len(event["body"])
            if not event["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def post(
    path: str, chunks: Iterable[bytes], headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, Any], Reader]:
    reader = Reader()
    sent: list[Mapping[str, Any]] = []
    events = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    events.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Mapping[str, Any]:
        return events.pop(0)

    async def send(event: Mapping[str, Any]) -> None:
        sent.append(event)

    pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "path": path, "method": "POST", "headers": pairs}
    asyncio.run(BoundedBodies(reader)(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"]), reader


@pytest.fixture(autouse=True)
def _limits(settings: Settings) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    settings.MAX_UPLOAD_BYTES = 1000


@pytest.mark.parametrize("path", ["/rest/runs", "/api/v1/forward_backward", "/sign-in/"])
def test_a_body_that_says_that_it_is_too_large_is_not_read(path: str) -> None:
    status, answer, reader = post(path, [b"x"], {"content-length": "101"})
    assert (status, reader.num_bytes) == (413, 0)
    assert "too large" in answer["detail"]
    assert answer["error"]["message"] == answer["detail"]


def test_a_body_of_unknown_length_is_read_as_far_as_it_may_go() -> None:
    status, _, reader = post("/rest/runs", [b"x" * 40] * 1000)
    assert (status, reader.num_bytes) == (413, 80)


def test_a_body_within_the_limit_arrives() -> None:
    status, _, reader = post("/rest/runs", [b"x" * 50] * 2, {"content-length": "100"})
    assert (status, reader.num_bytes) == (200, 100)


@pytest.mark.parametrize(
    "path", ["/rest/dataset-versions", "/datasets/new/", "/rest/generations", "/generations/new/"]
)
def test_uploads_may_be_larger(path: str) -> None:
    assert post(path, [b"x"], {"content-length": "1100"})[0] == 200
    assert post(path, [b"x"], {"content-length": "1101"})[0] == 413


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": "\\u0000"}',
        b'{"a": ["\\ud800"]}',
        b'{"\\udfff": 1}',
        b"[" * 100_000,
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b"[-1e400]",
        b'{"a": "\xff"}',
        b"9" * 5000,
        b"",
    ],
)
def test_what_is_no_json_or_cannot_be_stored_is_refused(body: bytes) -> None:
    with pytest.raises(UserError):
        parse_json(body)


def test_escapes_of_characters_and_of_backslashes_are_read() -> None:
    assert parse_json(b'{"a": "\\ud83d\\ude00 \\\\u0000"}') == {"a": "\U0001f600 \\u0000"}
