"""A light client of the Tinker wire: thousands of them share a core with the server they load."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

JSON = "application/json"
PROTOBUF = "application/x-protobuf"


class Refused(Exception):  # noqa: N818 - what the server said, not a fault of ours
    """An answer that is no success."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where an installation is, and the key that opens it: what its connection.json says."""

    url: str
    api_key: str


class Wire:
    """One connection that is kept, as the pools of an HTTP client keep theirs."""

    def __init__(self, address: Address) -> None:
        self.place = urlsplit(address.url)
        self.api_key = address.api_key
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, /, **fields: Any) -> Any:
        status, answer = await self.send(path, json.dumps(fields).encode(), JSON)
        if status >= 300:
            raise Refused(f"{path}: {status} {answer.decode()[:300]}")
        return json.loads(answer)

    async def wait(self, request_id: str) -> bytes:
        """The result, however many polls it takes."""
        body = json.dumps({"request_id": request_id}).encode()
        status, answer = 408, b""
        while status == 408:
            status, answer = await self.send("retrieve_future", body, JSON)
        if status != 200 or answer.startswith(b'{"error"'):
            raise Refused(f"{request_id}: {status} {answer.decode()[:300]}")
        return answer

    async def send(self, path: str, body: bytes, content_type: str) -> tuple[int, bytes]:
        if self.streams is None:
            self.streams = await asyncio.open_connection(self.place.hostname, self.place.port)
        reader, writer = self.streams
        writer.write(
            f"POST /api/v1/{path} HTTP/1.1\r\nHost: {self.place.netloc}\r\n"
            f"X-API-Key: {self.api_key}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, headers = _read_head(head)
        answer = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection") == "close":
            self.close()
        return status, answer

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


def _read_head(head: str) -> tuple[int, Mapping[str, str]]:
    first, *lines = head.strip().split("\r\n")
    pairs = (line.split(":", 1) for line in lines)
    return int(first.split()[1]), {name.lower(): value.strip().lower() for name, value in pairs}
