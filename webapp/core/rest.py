"""What every REST endpoint shares: errors of one shape."""

from typing import Any

from rest_framework.response import Response
from rest_framework.views import exception_handler

from webapp.core.errors import NotFound, UserError


def answer_error(error: Exception, context: dict[str, Any]) -> Response | None:
    """Every error reads {"error": {"message", "field"}}; what is not the caller's rises."""
    if isinstance(error, UserError):
        status = 404 if isinstance(error, NotFound) else 400
        return Response({"error": {"message": error.message, "field": error.field}}, status=status)
    response = exception_handler(error, context)
    if response is not None:
        field, message = _first_complaint(response.data)
        response.data = {"error": {"message": message, "field": field}}
    return response


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
