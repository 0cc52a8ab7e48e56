"""Downloads under ASGI: sent while they are made, and given up where the client leaves."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest, HttpResponseBase
from django.urls import path
from pytest_django.fixtures import Settings

from webapp.core.streams import PIECE_BYTES, StreamedResponse, stream_csv, take_piece

ROOT = Path(__file__).parents[3]
WAIT = 30  # seconds: never, where all is well
PART = b"x" * PIECE_BYTES


class Source:
    """Parts that are made when the test allows it; it is told when nobody wants more."""

    def __init__(self) -> None:
        self.num_made = 0
        self.may_go_on, self.is_closed = Event(), Event()

    def __iter__(self) -> Iterator[bytes]:
        try:
            for _ in range(3):
                self.num_made += 1
                yield PART
                assert self.may_go_on.wait(WAIT)
        finally:
            self.is_closed.set()


source = Source()


def download(_request: HttpRequest) -> HttpResponseBase:
    return StreamedResponse(iter(source))


def download_csv(_request: HttpRequest) -> HttpResponseBase:
    return stream_csv(([part.decode()] for part in source), "parts.csv")


urlpatterns = [path("download", download), path("csv", download_csv)]


@pytest.fixture
def opened(settings: Settings) -> Any:
    global source
    source = Source()
    settings.ROOT_URLCONF, settings.MIDDLEWARE = __name__, []
    return open_client


def open_client(asked: str) -> ApplicationCommunicator:
    scope = {
        "type": "http",
        "method": "GET",
        "path": asked,
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    return ApplicationCommunicator(ASGIHandler(), scope)


async def begin(client: ApplicationCommunicator) -> None:
    await client.send_input({"type": "http.request", "body": b""})
    start = await client.receive_output(WAIT)
    assert start["status"] == 200


async def read_rest(client: ApplicationCommunicator) -> bytes:
    read, has_more = bytearray(), True
    while has_more:
        part = await client.receive_output(WAIT)
        read += part.get("body", b"")
        has_more = part.get("more_body", False)
    return bytes(read)


async def test_the_first_piece_comes_before_the_source_has_made_the_next(opened: Any) -> None:
    client = opened("/download")
    await begin(client)
    piece = await client.receive_output(WAIT)
    assert (piece["body"], source.num_made, source.is_closed.is_set()) == (PART, 1, False)
    source.may_go_on.set()
    assert await read_rest(client) == PART * 2
    await client.wait(WAIT)
    assert source.is_closed.is_set()


@pytest.mark.parametrize("asked", ["/download", "/csv"])
async def test_a_client_that_leaves_in_the_middle_closes_the_source(
    opened: Any, asked: str
) -> None:
    client = opened(asked)
    await begin(client)
    await client.receive_output(WAIT)
    await client.send_input({"type": "http.disconnect"})
    source.may_go_on.set()
    await client.wait(WAIT)
    assert await asyncio.to_thread(source.is_closed.wait, WAIT)


async def test_our_own_files_are_streamed_too(settings: Settings) -> None:
    """Warnings are errors: Django warns where it reads a plain iterator to its end."""
    settings.MIDDLEWARE = ["webapp.core.static.StaticMiddleware"]
    settings.WHITENOISE_USE_FINDERS = settings.WHITENOISE_AUTOREFRESH = True
    client = open_client("/static/plotly/plotly.min.js")
    await client.send_input({"type": "http.request", "body": b""})
    start = await client.receive_output(WAIT)
    headers = dict(start["headers"])
    assert (start["status"], b"javascript" in headers[b"Content-Type"]) == (200, True)
    first = await client.receive_output(WAIT)
    assert 0 < len(first["body"]) <= PIECE_BYTES
    rest = await read_rest(client)
    assert len(first["body"]) + len(rest) == int(headers[b"Content-Length"]) > 1_000_000
    await client.wait(WAIT)


def test_small_parts_are_sent_together_and_empty_ones_end_nothing() -> None:
    parts = iter([b"a", b"", b"b"] + [b""] * 5 + [PART, b"c"])
    assert take_piece(parts) == b"ab" + PART
    assert take_piece(parts) == b"c"
    assert take_piece(parts) == b""


def test_nothing_is_streamed_in_another_way() -> None:
    allowed = {"streams.py", "static.py"}
    for each in (ROOT / "webapp").rglob("*.py"):
        if each.name not in allowed:
            text = each.read_text()
            assert "StreamingHttpResponse" not in text, each
            assert "FileResponse" not in text, each
