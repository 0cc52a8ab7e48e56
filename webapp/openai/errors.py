"""Refusals in OpenAI's shape, which Fireworks' inference clients read as well."""

import json
from typing import Any

from training.errors import shorten

Answer = tuple[int, dict[str, Any]]  # status, and what is said

NO_KEY = "This request carries no API key: send Authorization: Bearer with one of this project's."
WRONG_KEY = "This API key is unknown or was revoked."
READ_ONLY = "The user of this API key is a viewer of its project: it may read, not sample."
BUSY = "The database is busy: try again."
STOPPING = "The server is starting again: try again."

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


class Refused(Exception):  # noqa: N818 - reads as the sentence it is
    """An answer that is not a result."""

    def __init__(self, status: int, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.body = describe_error(status, message, field=field)


def describe_error(status: int, message: str, *, field: str = "") -> dict[str, Any]:
    kind = "server_error" if status >= 500 else TYPES.get(status, "invalid_request_error")
    return {
        "error": {
            "message": shorten(message),
            "type": kind,
            "param": field or None,
            "code": CODES.get(status),
        }
    }


def write_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
