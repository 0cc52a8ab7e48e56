"""Creates that may be repeated: the same `Idempotency-Key` gets the first answer again."""

from collections.abc import Callable, Mapping
from hashlib import sha256

from django.db import IntegrityError, transaction
from rest_framework.request import Request
from rest_framework.response import Response

from webapp.accounts.authentication import actor_of
from webapp.accounts.models import IdempotentRequest
from webapp.core.errors import UserError

RUNNING = 0
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
        return _repeat(IdempotentRequest.objects.get(project=project, key=key), digest)
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


def _repeat(first: IdempotentRequest, digest: str) -> Response:
    if first.digest != digest:
        raise UserError("This Idempotency-Key was used for another request; choose a new one.")
    if first.status == RUNNING:
        message = "The first request with this Idempotency-Key is still running; ask again."
        return Response({"error": {"message": message, "field": ""}}, status=CONFLICT)
    return Response(first.response, status=first.status)


def _digest_request(request: Request) -> str:
    """Of what was sent; of an upload its name and size, since its bytes are read once only."""
    digest = sha256(f"{request.method} {request.path}".encode())
    fields = request.data if isinstance(request.data, Mapping) else {"": request.data}
    for name, value in sorted(fields.items()):
        size = getattr(value, "size", "")
        digest.update(f"\0{name}\0{value}\0{size}".encode())
    return digest.hexdigest()
