"""Bodies of requests: how large one may be, and JSON that a database can store."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from django.conf import settings

from webapp.core.errors import UserError
from webapp.core.threads import App, Receive, Scope, Send

UPLOADS = ("/rest/dataset-versions", "/datasets/new/", "/rest/generations", "/generations/new/")
HALF_PAIR = re.compile("[\ud800-\udfff]")


class BoundedBodies:
    """Stands before Django, which keeps a body of any size on the disk before it asks who sends it.

    An upload has room beyond its own limit, so that one that is a little too large is refused by
    the form's own sentence.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        most = find_limit(scope["path"])
        if _read_length(scope) > most:
            await refuse(send, most)
            return
        counted = _Counted(receive, most)
        await self.app(scope, counted, send)
        if counted.is_too_large:
            await refuse(send, most)


class _Counted:
    """For bodies that do not say their length: Django gives up one whose sender seems to go."""

    def __init__(self, receive: Receive, most: int) -> None:
        self.receive = receive
        self.left = most

    @property
    def is_too_large(self) -> bool:
        return self.left < 0

    async def __call__(self) -> Mapping[str, Any]:
        event = await self.receive()
        self.left -= len(event.get("body", b""))
        return {"type": "http.disconnect"} if self.is_too_large else event


def find_limit(path: str) -> int:
    room: int = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    is_upload = path in UPLOADS
    return room + settings.MAX_UPLOAD_BYTES if is_upload else room


def _read_length(scope: Scope) -> int:
    found = (value for name, value in scope["headers"] if name == b"content-length")
    length = next(found, b"0")
    return int(length) if length.isdigit() else 0


async def refuse(send: Send, most: int) -> None:
    """In the shapes of REST and of the Tinker wire at once."""
    message = f"The body is too large: at most {most // 2**20} MiB are read here."
    body = json.dumps({"error": {"message": message, "field": ""}, "detail": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def parse_json(body: bytes, *, may_have_nan: bool = False) -> Any:
    """Raises UserError, also for what is JSON and what no database stores."""
    constant, real = (None, None) if may_have_nan else (_refuse_constant, _read_finite)
    try:
        text = body.decode()
        value = json.loads(text, parse_constant=constant, parse_float=real)
    except (ValueError, RecursionError) as error:
        raise UserError(f"The body is not JSON: {error}.") from None
    if "\\u" in text:  # both can stand in JSON as escapes alone
        _check_characters(value)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _read_finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _check_characters(value: Any) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, str) and ("\0" in item or HALF_PAIR.search(item)):
            raise UserError(f"{item!r:.100} has a NUL character or half of a surrogate pair.")
