"""Pages of a sorted list by cursor: rows that arrive meanwhile move nothing."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from django.core.exceptions import FieldError, ValidationError
from django.db.models import Model, Q, QuerySet

from webapp.core.errors import UserError

M = TypeVar("M", bound=Model)


@dataclass(frozen=True, slots=True, kw_only=True)
class CursorPage(Generic[M]):
    rows: list[M]
    next: str  # empty on the last page
    is_first: bool


def read_page(rows: QuerySet[M], *, order: str, cursor: str, page_size: int = 50) -> CursorPage[M]:
    """`order` is a column or annotation that is never null, with `-` for falling."""
    column, is_falling = order.removeprefix("-"), order.startswith("-")
    sign, compare = ("-", "lt") if is_falling else ("", "gt")
    if cursor:
        rows = _filter_beyond(rows, column, compare, cursor)
    found = list(rows.order_by(f"{sign}{column}", f"{sign}pk")[: page_size + 1])
    page, has_more = found[:page_size], len(found) > page_size
    following = _encode(getattr(page[-1], column), page[-1].pk) if has_more else ""
    return CursorPage(rows=page, next=following, is_first=not cursor)


def _encode(value: Any, pk: Any) -> str:
    if isinstance(value, datetime):
        value = {"at": value.isoformat()}
    return urlsafe_b64encode(json.dumps([value, pk]).encode()).decode()


def _filter_beyond(rows: QuerySet[M], column: str, compare: str, cursor: str) -> QuerySet[M]:
    """A cursor is a part of an address: people may send anything as one."""
    try:
        value, pk = _decode(cursor)
        beyond = Q(**{f"{column}__{compare}": value})
        return rows.filter(beyond | Q(**{column: value, f"pk__{compare}": pk}))
    except (ValueError, TypeError, KeyError, FieldError, ValidationError, RecursionError):
        raise UserError("This page's address is damaged: open the list again.") from None


def _decode(cursor: str) -> tuple[Any, Any]:
    value, pk = json.loads(urlsafe_b64decode(cursor))
    if isinstance(value, Mapping):
        value = datetime.fromisoformat(value["at"])
    return value, pk
