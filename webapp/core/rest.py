"""What every REST endpoint shares: errors of one shape."""

import logging
from typing import Any

from rest_framework.response import Response
from rest_framework.views import exception_handler

from webapp.core.errors import DISK_FULL, NotFound, UserError, is_disk_full
from webapp.core.ids import make_id

logger = logging.getLogger(__name__)


def answer_error(error: Exception, context: dict[str, Any]) -> Response:
    """Every error reads {"error": {"message", "field"}}; a bug is named by a number in the log."""
    if isinstance(error, UserError):
        status = 404 if isinstance(error, NotFound) else 400
        return Response({"error": {"message": error.message, "field": error.field}}, status=status)
    response = exception_handler(error, context)
    if response is None:
        return _answer_failure(error)
    field, message = _first_complaint(response.data)
    response.data = {"error": {"message": message, "field": field}}
    return response


def _answer_failure(error: Exception) -> Response:
    number = make_id("err")
    logger.error("Internal error %s", number, exc_info=error)
    if is_disk_full(error):
        return Response({"error": {"message": DISK_FULL, "field": ""}}, status=507)
    message = f"Internal error {number}. The log of the server says more."
    return Response({"error": {"message": message, "field": ""}}, status=500)


def _first_complaint(data: Any) -> tuple[str, str]:
    """DRF's errors are nested by field; the first one is what to change first."""
    if isinstance(data, dict):
        if "detail" in data:
            return "", str(data["detail"])
        key, inner = next(iter(data.items()))
        field, message = _first_complaint(inner)
        return ".".join(part for part in (str(key), field) if part), message
    if isinstance(data, list):
        return _first_complaint(data[0])
    return "", str(data)
