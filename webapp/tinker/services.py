"""Writes of the Tinker dialect: sessions, and operations of the runs behind model ids."""

from training.requests import check_request
from training.types import MAX_RANK, OPTIMIZERS
from webapp.accounts.models import Actor
from webapp.core.errors import NotFound, UserError
from webapp.core.fields import LARGEST, Fields
from webapp.fleet.models import BaseModel
from webapp.fleet.services import find_base_model
from webapp.runs.clients import (
    check_open,
    find_log,
    find_session,
    open_client_run,
    open_session,
    refusing,
    submit_json,
)
from webapp.runs.custom_losses import attach_loss, create_custom_loss
from webapp.runs.models import CustomLoss, Operation, Session
from webapp.runs.optimizers import read_params
from webapp.runs.queue import MAX_SEQ, submit_operation
from webapp.runs.room import check_data, check_spec
from webapp.runs.services import LORA_FLAGS, note_reading
from webapp.wire import passes

CLIENT_RANK = 32  # what the SDK sends where its user says nothing

Kind = Operation.Kind


def open_client_session(*, actor: Actor, fields: Fields, idempotency_key: str) -> Session:
    check_project(actor, fields)
    return open_session(actor=actor, fields=fields, idempotency_key=idempotency_key)


def check_project(actor: Actor, fields: Fields) -> None:
    """A key works in its own project alone: what it opened elsewhere it could not use."""
    project_id = fields.text("project_id", actor.project.pk)
    if project_id != actor.project.pk:
        raise UserError(
            f"This API key works in the project {actor.project} ({actor.project.pk}), not in"
            f" {project_id[:60]}: open the session with a key of that project.",
            field="project_id",
        )


def create_model(*, actor: Actor, fields: Fields) -> Operation:
    session = find_session(actor, fields.text("session_id"))
    optimizer = read_optimizer(fields)
    name = fields.text("base_model")
    base_model = find_offered(name)
    lora = fields.inner("lora_config")
    asked = {
        "rank": read_rank(lora),
        "seed": lora.whole("seed", 0, least=-LARGEST),
        **{flag: lora.flag(flag, True) for flag in LORA_FLAGS},
    }
    check_spec(base_model, asked)
    run = open_client_run(
        actor=actor,
        session=session,
        model_seq_id=fields.whole("model_seq_id"),
        base_model=base_model,
        asked_model=name,
        lora=asked,
        optimizer=optimizer,
        user_metadata=fields.document("user_metadata"),
    )
    if (run.base_model_id, run.optimizer) != (base_model.pk, optimizer):
        raise UserError(f"model_seq_id {run.model_seq_id} already names a model of {run}.")
    spec = {"rank": run.rank, **run.lora, "optimizer": optimizer}
    return submit_json(run, 0, Kind.CREATE_MODEL, spec)


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


def read_optimizer(fields: Fields, default: str = "adamw") -> str:
    config = fields.inner("optimizer_config")
    kind = config.text("type", default)
    if kind not in OPTIMIZERS:
        raise UserError(
            f"optimizer_config.type {kind[:60]} is not offered here: use adamw or dimuon."
        )
    if kind == "dimuon" and config.whole("version", 1) != 1:
        raise UserError("optimizer_config.version of dimuon is 1: no other is known here.")
    return kind


def describe_optimizer(kind: str) -> dict[str, str | int]:
    return {"type": kind, "version": 1} if kind == "dimuon" else {"type": kind}


def forward_backward(*, actor: Actor, body: bytes) -> Operation:
    message = passes.parse_forward_backward(body)
    run = find_log(actor, message.model_id)
    forward_only = message.forward_only
    with refusing(run, message.seq_id, Kind.FORWARD_BACKWARD, forward_only=forward_only):
        check_open(run)
        request = attach_loss(run, passes.read_forward_backward(message))
        check_request(request, run.base_model.vocab_size, run.base_model.context_tokens)
        if not forward_only:
            check_data(run, request.data)
        note_reading(run, request.loss_fn)
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
    run = find_log(actor, fields.text("model_id"))
    seq = fields.whole("seq_id", least=1, most=MAX_SEQ)
    with refusing(run, seq, Kind.OPTIM_STEP):
        return submit_json(run, seq, Kind.OPTIM_STEP, read_params(run, fields))
