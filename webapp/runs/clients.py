"""What programs do to their runs, whatever dialect they speak: find them, add to their logs."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.db import IntegrityError, transaction
from django.utils.timezone import now

from training.errors import InvalidInput
from webapp.accounts.models import Actor
from webapp.core.errors import NotFound, UserError
from webapp.core.fields import Fields
from webapp.fleet.models import BaseModel
from webapp.runs.models import Operation, Origin, Run, RunQuerySet, Session
from webapp.runs.queue import submit_operation
from webapp.runs.refusals import refuse_operation
from webapp.runs.services import (
    LONGEST_NAME,
    add_log,
    announce,
    check_parent,
    check_rank,
    choose_lora,
    note_reading,
)

RENUMBERED = ("sampling_session_seq_id",)  # the SDK counts on when it repeats an ephemeral save
LOG_COLUMNS = (
    *("session", "model_seq_id", "status", "done_seq", "worker", "lease_until", "optimizer"),
    "is_reference",
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
    model_id = model_id.replace("\0", "?")  # no id holds one, and PostgreSQL takes none
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


def open_client_run(  # noqa: PLR0913 - the row's columns, by name
    *,
    actor: Actor,
    session: Session,
    model_seq_id: int,
    base_model: BaseModel,
    asked_model: str = "",
    lora: Mapping[str, Any] | None = None,
    parent: Any | None = None,
    with_optimizer: bool = False,
    optimizer: str = "adamw",
    user_metadata: Mapping[str, Any] | None = None,
    origin: str = Origin.TINKER,
    may_be_full: bool = False,
    is_reference: bool = False,
) -> Run:
    """The run behind a training client; a retry with the same `model_seq_id` gets the first one.

    `lora` holds rank, alpha, seed and the train flags; a run from a checkpoint has its parent's.
    `may_be_full`: in this client's dialect rank 0 asks for all weights.
    """
    if session.finished_at is not None:
        raise UserError("This session has ended: open another one.", field="session_id")
    first = Run.objects.filter(session=session, model_seq_id=model_seq_id).first()
    if first is not None:
        return first
    check_parent(parent, base_model, with_optimizer, optimizer)
    rank, shape = (parent.rank, parent.run.lora) if parent else choose_size(lora, may_be_full)
    run, is_new = Run.objects.get_or_create(
        session=session,
        model_seq_id=model_seq_id,
        defaults={
            "project": session.project,
            "created_by": actor.user,
            "name": name_run(session, model_seq_id, user_metadata or {}),
            "origin": origin,
            "base_model": base_model,
            "asked_model": asked_model,
            "rank": rank,
            "lora": shape,
            "is_reference": is_reference,
            "config": {**session.user_metadata, **(user_metadata or {})},
            "parent": parent,
            "with_optimizer": with_optimizer,
            "optimizer": optimizer,
            "status": Run.Status.RUNNING,
            "started_at": now(),
        },
    )
    if is_new:
        begins = f"the checkpoint {parent.name}" if parent else str(base_model)
        add_log(run, f"Opened by {actor.user}'s program, from {begins}.")
        note_reading(run, optimizer)
        announce(run)
    return run


def choose_size(lora: Mapping[str, Any] | None, may_be_full: bool) -> tuple[int, Mapping[str, Any]]:
    """Of an adapter its rank and its shape; of all weights there is nothing to say."""
    chosen = dict(lora or {})
    rank = chosen.pop("rank", 32)
    if may_be_full and rank == 0:
        return 0, {}
    return check_rank(rank), choose_lora(chosen)


def name_run(session: Session, model_seq_id: int, user_metadata: Mapping[str, Any]) -> str:
    """What its program calls the run, else the session, else the recipe that it follows."""
    told = {**session.user_metadata, **user_metadata}
    recipe = str(told.get("recipe_name", "")).removeprefix("recipe_")
    given = user_metadata.get("name") or session.display_name or recipe or "SDK run"
    number = f" {model_seq_id + 1}" if model_seq_id else ""
    return f"{given}"[: LONGEST_NAME - len(number)] + number


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
