"""Creates that may be repeated: the same `Idempotency-Key` gets the first answer again."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from hashlib import sha256

from django.db import IntegrityError, transaction
from django.utils.timezone import now
from rest_framework.request import Request
from rest_framework.response import Response

from webapp.accounts.authentication import actor_of
from webapp.accounts.models import IdempotentRequest
from webapp.core.errors import UserError

RUNNING = 0
LONGEST_CREATE = timedelta(minutes=10)
CONFLICT = 409


def answer_once(request: Request, create: Callable[[], Response]) -> Response:
    """Without the header every request creates. A create that fails may be tried again."""
    key = request.headers.get("Idempotency-Key", "")
    if not key:
        return create()
    if len(key) > 200:
        raise UserError("Idempotency-Key is longer than 200 characters.")
    digest = _digest_request(request)
    project = actor_of(request).project
    try:
        with transaction.atomic():
            row = IdempotentRequest.objects.create(project=project, key=key, digest=digest)
    except IntegrityError:
        first = IdempotentRequest.objects.filter(project=project, key=key).first()
        return _repeat(first, digest, create)
    return _run_first(row, create)


def _run_first(row: IdempotentRequest, create: Callable[[], Response]) -> Response:
    is_stored = False
    try:
        response = create()
        row.status, row.response = response.status_code, response.data
        row.save(update_fields=["status", "response"])
        is_stored = True
    finally:
        if not is_stored:
            row.delete()
    return response


def _repeat(
    first: IdempotentRequest | None, digest: str, create: Callable[[], Response]
) -> Response:
    """None: the first one has failed at this moment, and another attempt may be under way."""
    if first is not None and first.digest != digest:
        raise UserError("This Idempotency-Key was used for another request; choose a new one.")
    if first is None or (first.status == RUNNING and not _take_over(first)):
        message = "The first request with this Idempotency-Key is still running; ask again."
        return Response({"error": {"message": message, "field": ""}}, status=CONFLICT)
    if first.status == RUNNING:
        return _run_first(first, create)
    return Response(first.response, status=first.status)


def _take_over(first: IdempotentRequest) -> bool:
    """Where its process was killed, nobody else ends it. False: it may still be at it."""
    same = IdempotentRequest.objects.filter(pk=first.pk, status=RUNNING)
    stale = same.filter(created_at__lt=now() - LONGEST_CREATE)
    return stale.update(created_at=now()) == 1


def _digest_request(request: Request) -> str:
    """Of what was sent; of an upload its name and size, since its bytes are read once only."""
    digest = sha256(f"{request.method} {request.path}".encode())
    fields = request.data if isinstance(request.data, Mapping) else {"": request.data}
    for name, value in sorted(fields.items()):
        size = getattr(value, "size", "")
        digest.update(f"\0{name}\0{value}\0{size}".encode())
    return digest.hexdigest()
