"""Writes of the Tinker dialect: sessions, and operations of the runs behind model ids."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any

from django.db import IntegrityError, transaction

from training.errors import InvalidInput
from training.requests import check_request
from training.types import MAX_RANK, AdamParams
from webapp.accounts.models import Actor
from webapp.core.errors import NotFound, UserError
from webapp.fleet.models import BaseModel
from webapp.fleet.services import find_base_model
from webapp.runs.custom_losses import attach_loss, create_custom_loss
from webapp.runs.models import CustomLoss, Operation, Run, RunQuerySet, Session
from webapp.runs.queue import MAX_SEQ, refuse_operation, submit_operation
from webapp.runs.services import LORA_FLAGS, open_client_run
from webapp.tinker import wire
from webapp.tinker.fields import LARGEST, Fields

RENUMBERED = ("sampling_session_seq_id",)  # the SDK counts on when it repeats an ephemeral save
CLIENT_RANK = 32  # what the SDK sends where its user says nothing

Kind = Operation.Kind


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


def create_model(*, actor: Actor, fields: Fields) -> Operation:
    session = find_session(actor, fields.text("session_id"))
    check_optimizer(fields)
    name = fields.text("base_model")
    base_model = find_offered(name)
    lora = fields.inner("lora_config")
    run = open_client_run(
        actor=actor,
        session=session,
        model_seq_id=fields.whole("model_seq_id"),
        base_model=base_model,
        asked_model=name,
        lora={
            "rank": read_rank(lora),
            "seed": lora.whole("seed", 0, least=-LARGEST),
            **{flag: lora.flag(flag, True) for flag in LORA_FLAGS},
        },
        user_metadata=fields.document("user_metadata"),
    )
    if run.base_model_id != base_model.pk:
        raise UserError(f"model_seq_id {run.model_seq_id} already names a model of {run}.")
    return submit_json(run, 0, Kind.CREATE_MODEL, {"rank": run.rank, **run.lora})


def read_rank(lora: Fields) -> int:
    rank = lora.whole("rank", CLIENT_RANK, least=-LARGEST)
    if rank < 1:
        raise UserError(
            f"lora_config.rank must be positive: rank is {rank}: choose one from 1 to {MAX_RANK}.",
            field="lora_config.rank",
        )
    return rank


def find_offered(name: str) -> BaseModel:
    """An unknown name is a mistake in the body, not a path that does not exist."""
    try:
        return find_base_model(name)
    except NotFound as error:
        raise UserError(error.message, field="base_model") from None


def check_optimizer(fields: Fields) -> None:
    kind = fields.inner("optimizer_config").text("type", "adamw")
    if kind != "adamw":
        raise UserError(f"optimizer_config.type {kind} is not offered here: use adamw.")


def forward_backward(*, actor: Actor, body: bytes) -> Operation:
    message = wire.parse_forward_backward(body)
    run = find_run(actor, message.model_id)
    forward_only = message.forward_only
    with refusing(run, message.seq_id, Kind.FORWARD_BACKWARD, forward_only=forward_only):
        check_open(run)
        request = attach_loss(run, wire.read_forward_backward(message))
        check_request(request, run.base_model.vocab_size, run.base_model.context_tokens)
        return submit_operation(
            run,
            seq=message.seq_id,
            kind=Kind.FORWARD_BACKWARD,
            payload=body,
            num_tokens=request.weight,
            forward_only=forward_only,
        )


def store_custom_loss(*, actor: Actor, fields: Fields) -> CustomLoss:
    return create_custom_loss(
        session=find_session(actor, fields.text("session_id")),
        custom_loss_seq_id=fields.whole("custom_loss_seq_id"),
        name=fields.text("name"),
        inputs=fields.values.get("inputs"),
        graph=fields.values.get("graph"),
    )


def optim_step(*, actor: Actor, fields: Fields) -> Operation:
    run = find_run(actor, fields.text("model_id"))
    seq = fields.whole("seq_id", least=1, most=MAX_SEQ)
    with refusing(run, seq, Kind.OPTIM_STEP):
        if fields.has("optimizer_params"):
            kind = fields.inner("optimizer_params").text("type", "")
            raise UserError(f"The optimizer {kind} is not offered here: send adam_params.")
        adam = read_adam(fields.inner("adam_params"))
        return submit_json(run, seq, Kind.OPTIM_STEP, {"adam_params": asdict(adam)})


def read_adam(given: Fields) -> AdamParams:
    defaults = asdict(AdamParams())
    unknown = set(given.values) - set(defaults)
    if unknown:
        raise UserError(f"adam_params.{min(unknown)} is unknown: send {', '.join(defaults)}.")
    numbers = {f.name: given.number(f.name, defaults[f.name]) for f in fields(AdamParams)}
    for name, value in numbers.items():
        limit = 1.0 if name.startswith("beta") else math.inf
        if not 0 <= value < limit:
            bounds = "from 0 to below 1" if name.startswith("beta") else "of 0 or more"
            raise UserError(f"adam_params.{name} is {value}: send a number {bounds}.")
    return AdamParams(**numbers)


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
