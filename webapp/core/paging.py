"""REST lists, paged by cursor: stable while rows are added."""

from collections.abc import Sequence
from typing import Any, TypeVar

from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from rest_framework.exceptions import NotFound
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.views import APIView

M = TypeVar("M")


class CreatedCursorPagination(CursorPagination):
    """Newest first; `?cursor=` is opaque, `?page_size=` up to 200."""

    ordering: str | tuple[str, ...] = "-created_at"
    page_size_query_param = "page_size"
    max_page_size = 200

    def paginate_queryset(
        self,
        queryset: QuerySet[Any, M] | Sequence[M],
        request: Request,
        view: APIView | None = None,
    ) -> list[M] | None:
        """What is in a cursor is compared with times, and people may send anything as one."""
        try:
            return super().paginate_queryset(queryset, request, view)
        except ValidationError:
            raise NotFound(self.invalid_cursor_message) from None


class AddedCursorPagination(CreatedCursorPagination):
    """For what was added rather than created."""

    ordering = "-added_at"
