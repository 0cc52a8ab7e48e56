"""What programs do to their runs, whatever dialect they speak: find them, add to their logs."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.db import IntegrityError, transaction

from training.errors import InvalidInput
from webapp.accounts.models import Actor
from webapp.core.errors import NotFound, UserError
from webapp.core.fields import Fields
from webapp.runs.models import Operation, Run, RunQuerySet, Session
from webapp.runs.queue import refuse_operation, submit_operation

RENUMBERED = ("sampling_session_seq_id",)  # the SDK counts on when it repeats an ephemeral save
LOG_COLUMNS = (
    *("session", "model_seq_id", "status", "done_seq", "worker", "lease_until", "optimizer"),
    *("base_model__vocab_size", "base_model__context_tokens"),
)


def open_session(*, actor: Actor, fields: Fields, idempotency_key: str) -> Session:
    """A retry with the same key returns the first one."""
    session = Session(
        project=actor.project,
        user=actor.user,
        idempotency_key=idempotency_key[:200],
        tags=fields.list_of("tags", str),
        user_metadata=fields.document("user_metadata"),
        display_name=fields.text("display_name", "")[:200],
        sdk_version=fields.text("sdk_version", "")[:40],
    )
    try:
        with transaction.atomic():
            session.save(force_insert=True)
    except IntegrityError:
        return Session.objects.get(project=actor.project, idempotency_key=session.idempotency_key)
    return session


def find_session(actor: Actor, session_id: str) -> Session:
    session = Session.objects.visible_to(actor).filter(pk=session_id).first()
    if session is None:
        raise NotFound(f"There is no session {session_id}.")
    return session


def find_run(actor: Actor, model_id: str) -> Run:
    return find_run_among(Run.objects.visible_to(actor), model_id)


def find_log(actor: Actor, model_id: str) -> Run:
    """The run with what its log needs: a step asks twice, and half of a row is for its pages."""
    return find_run_among(Run.objects.visible_to(actor).only(*LOG_COLUMNS), model_id)


def find_run_among(runs: RunQuerySet, model_id: str) -> Run:
    """By `<session>:train:<number>`; runs without a session go by their own id."""
    runs = runs.select_related("base_model")
    session_id, separator, number = model_id.rpartition(":train:")
    if not separator:
        run = runs.filter(pk=model_id, session=None).first()
    elif re.fullmatch("[0-9]{1,18}", number):
        run = runs.filter(session=session_id, model_seq_id=int(number)).first()
    else:
        run = None
    if run is None:
        raise NotFound(f"There is no model {model_id[:100]}.")
    return run


def submit_json(run: Run, seq: int, kind: str, payload: Mapping[str, Any]) -> Operation:
    check_open(run)
    same = {key: value for key, value in payload.items() if key not in RENUMBERED}
    return submit_operation(
        run, seq=seq, kind=kind, payload=encode_json(payload), identity=encode_json(same)
    )


def encode_json(payload: Mapping[str, Any]) -> bytes:
    return json.dumps(payload, sort_keys=True).encode()


def check_open(run: Run) -> None:
    if run.is_over:
        raise UserError(
            f"This run has ended ({run.status}): create another training client, from one of its"
            " checkpoints if it has any."
        )


@contextmanager
def refusing(run: Run, seq: int, kind: str, *, forward_only: bool = False) -> Iterator[None]:
    """The SDK never sends a number again that got a 4xx: the log must not wait for it."""
    try:
        yield
    except (UserError, InvalidInput) as error:
        refuse_operation(run, seq=seq, kind=kind, error=str(error), forward_only=forward_only)
        raise
