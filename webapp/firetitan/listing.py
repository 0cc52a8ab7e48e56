"""Lists by pages: `pageSize` and `pageToken` in, `nextPageToken` out."""

from collections.abc import Callable
from typing import Any, TypeVar

from django.db.models import Model, QuerySet
from django.http import JsonResponse

from webapp.core.cursors import read_page
from webapp.core.errors import UserError
from webapp.firetitan.endpoints import FiretitanRequest

DEFAULT_SIZE = 50
LARGEST_SIZE = 200

M = TypeVar("M", bound=Model)


def list_page(
    request: FiretitanRequest, rows: QuerySet[M], key: str, tell: Callable[[M], dict[str, Any]]
) -> JsonResponse:
    """Oldest first."""
    page = read_page(
        rows,
        order="created_at",
        cursor=request.GET.get("pageToken", ""),
        page_size=read_size(request.GET.get("pageSize", "")),
    )
    return JsonResponse({key: [tell(row) for row in page.rows], "nextPageToken": page.next})


def read_size(text: str) -> int:
    """0 and nothing mean the usual number; more than the largest is the largest."""
    if text and not (text.isdecimal() and len(text) < 10):
        raise UserError(f"pageSize is {text[:60]!r}; send a whole number.", field="pageSize")
    return min(int(text or 0) or DEFAULT_SIZE, LARGEST_SIZE)
