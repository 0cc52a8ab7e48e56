"""Every error of this wire reads {"code", "message", "details"}, as gRPC numbers them."""

import logging
import secrets

from django.core.exceptions import RequestDataTooBig
from django.db import OperationalError
from django.http import JsonResponse

from training.errors import InvalidInput, shorten
from webapp.core.errors import NotFound, TooMany, UserError

# By status; anything else of a caller's is an invalid argument.
CODES = {401: 16, 403: 7, 404: 5, 405: 12, 409: 6, 429: 8, 503: 14}
INVALID_ARGUMENT = 3

logger = logging.getLogger(__name__)


class AlreadyExists(UserError):  # noqa: N818 - the wire's own name
    """The SDK reads what has this id instead, and takes it."""


def refuse(message: str, status: int, headers: dict[str, str] | None = None) -> JsonResponse:
    code = CODES.get(status, INVALID_ARGUMENT)
    body = {"code": code, "message": shorten(message), "details": []}
    return JsonResponse(body, status=status, headers=headers)


def choose_status(error: UserError | InvalidInput) -> int:
    known = {NotFound: 404, AlreadyExists: 409, TooMany: 429}
    return next((known[kind] for kind in known if isinstance(error, kind)), 400)


def answer_error(path: str, error: Exception) -> JsonResponse:
    """A bug is a 400 here: the SDK repeats a 5xx for minutes, and it would fail each time."""
    if isinstance(error, UserError | InvalidInput):
        return refuse(str(error), choose_status(error))
    if isinstance(error, RequestDataTooBig):
        return refuse("The body is too large: send fewer datums in one request.", 400)
    if isinstance(error, OperationalError):  # a busy or restarting database heals
        logger.warning("%s: %s", path, error)
        return refuse("The database is busy: try again.", 503, {"Retry-After": "1"})
    error_id = secrets.token_hex(4)
    logger.error("error %s at %s", error_id, path, exc_info=error)
    return refuse(f"Internal error {error_id}: the server's log says more.", 400)
