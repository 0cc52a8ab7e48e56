"""Answers that are sent while they are made."""

import csv
from collections.abc import AsyncIterator, Iterable, Iterator
from time import monotonic
from typing import Any

from asgiref.sync import sync_to_async
from django.http import StreamingHttpResponse

PIECE_BYTES = 64 * 1024
PIECE_SECONDS = 0.1  # a slow source is not waited for that long, once there is something to send


class StreamedResponse(StreamingHttpResponse):
    """Streams under ASGI as well, where Django would first read a plain iterator to its end.

    The source is read in the request's own thread, a piece at a time, when the client has taken the
    piece before; it is closed there as well, also where the client leaves in the middle.
    """

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = iter(self)
        while piece := await sync_to_async(take_piece)(parts):
            yield piece


def take_piece(parts: Iterator[bytes]) -> bytes:
    """Small parts together: a turn of the thread for each line would take longer than its making.
    Empty at the end only."""
    taken: list[bytes] = []
    num_bytes, deadline = 0, monotonic() + PIECE_SECONDS
    for part in parts:
        taken.append(part)
        num_bytes += len(part)
        if num_bytes >= PIECE_BYTES or (num_bytes and monotonic() > deadline):
            break
    return b"".join(taken)


class Echo:
    """A file for the csv writer that hands each line on."""

    def write(self, line: str) -> str:
        return line


def stream_csv(rows: Iterable[Iterable[Any]], filename: str) -> StreamedResponse:
    writer = csv.writer(Echo())
    lines = (writer.writerow(row) for row in rows)
    response = StreamedResponse(lines, content_type="text/csv; charset=utf-8")
    response.headers["Content-Disposition"] = f'attachment; filename="{filename}"'
    return response
