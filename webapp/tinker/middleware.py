"""Every error under /api/ reads {"detail": sentence}, with a status that the SDK does not retry."""

import logging
import secrets
from collections.abc import Callable

from django.core.exceptions import RequestDataTooBig
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse

from training.errors import InvalidInput, shorten
from webapp.core.errors import UserError, choose_status

logger = logging.getLogger(__name__)


class TinkerErrorMiddleware:
    """A bug is a 400 here: the SDK repeats a 5xx for minutes, and it would fail each time."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        return answer_error(request.path, error) if request.path.startswith("/api/") else None


def answer_error(path: str, error: Exception) -> JsonResponse:
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


def refuse(detail: str, status: int, headers: dict[str, str] | None = None) -> JsonResponse:
    return JsonResponse({"detail": shorten(detail)}, status=status, headers=headers)
