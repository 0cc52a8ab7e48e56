"""REST lists, paged by cursor: stable while rows are added."""

from rest_framework.pagination import CursorPagination


class CreatedCursorPagination(CursorPagination):
    """Newest first; `?cursor=` is opaque, `?page_size=` up to 200."""

    ordering = "-created_at"
    page_size_query_param = "page_size"
    max_page_size = 200


class AddedCursorPagination(CreatedCursorPagination):
    """For what was added rather than created."""

    ordering = "-added_at"
