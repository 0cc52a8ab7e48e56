"""Answers that are sent while they are made."""

from collections.abc import AsyncIterator

from asgiref.sync import sync_to_async
from django.http import StreamingHttpResponse


class StreamedResponse(StreamingHttpResponse):
    """Streams under ASGI as well, where Django would first read a plain iterator to its end."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = iter(self)
        while chunk := await sync_to_async(lambda: next(chunks, b""))():
            yield chunk
