"""Writes of a trainer's clients: their sessions and models."""

from typing import Any

from django.db import transaction

from training.requests import LOSS_INPUTS
from training.types import MAX_RANK
from webapp.accounts.models import Actor
from webapp.core.errors import NotFound, UserError
from webapp.core.fields import LARGEST, Fields
from webapp.firetitan.describing import has_experts
from webapp.firetitan.models import TrainerJob
from webapp.firetitan.names import find_base_model
from webapp.firetitan.services import note_seen
from webapp.firetitan.standing import REFERENCE_RANK
from webapp.fleet.models import BaseModel
from webapp.runs.clients import (
    LOG_COLUMNS,
    find_run_among,
    open_client_run,
    open_session,
    submit_json,
)
from webapp.runs.models import Operation, Origin, Run, Session
from webapp.runs.queue import submit_operation
from webapp.runs.room import check_spec
from webapp.runs.services import LORA_FLAGS

INIT_METHODS = ("kaiming",)
CLIENT_RANK = 32  # where a program says nothing of it
MOST_PROJECTED = 16384  # rows of a projection head

Kind = Operation.Kind


def open_trainer_session(
    *, actor: Actor, job: TrainerJob, fields: Fields, idempotency_key: str
) -> Session:
    """Its runs carry the job's name."""
    check_job(job)
    named = Fields({**fields.values, "display_name": str(job)})
    session = open_session(actor=actor, fields=named, idempotency_key=idempotency_key)
    job.sessions.add(session)
    note_seen(job)
    return session


def check_job(job: TrainerJob) -> None:
    if not job.is_open:
        raise UserError(f"The trainer job {job.job_id} is {job.state}: it takes no new work.")


def find_model(job: TrainerJob, model_id: str) -> Run:
    runs = Run.objects.filter(session__trainer_jobs=job)
    return find_run_among(runs.only(*LOG_COLUMNS), model_id)


def create_model(*, actor: Actor, job: TrainerJob, fields: Fields) -> Operation:
    """The same model_seq_id again is the same model."""
    check_job(job)
    session_id = fields.text("session_id")
    session = job.sessions.filter(pk=session_id).first()
    if session is None:
        raise NotFound(f"There is no session {session_id[:100]} of this trainer job.")
    base_model = find_offered(job, fields)
    is_reference = job.forward_only or fields.flag("base_only", False)
    shape = read_shape(fields, is_reference)
    check_spec(base_model, shape)
    run = open_client_run(
        actor=actor,
        session=session,
        model_seq_id=fields.whole("model_seq_id"),
        base_model=base_model,
        asked_model=fields.text("base_model"),
        lora=shape,
        user_metadata=fields.document("user_metadata"),
        origin=Origin.FIRETITAN,
        may_be_full=True,
        is_reference=is_reference,
    )
    head = shape.get("projection_head_dim", 0)
    own = {"projection_head_dim": head} if head else {}
    spec = {"rank": run.rank, **run.lora, **own, "optimizer": run.optimizer}
    asked = {"rank": shape["rank"], "reference": is_reference}
    if asked != {"rank": run.rank, "reference": run.is_reference}:
        raise UserError(f"model_seq_id {run.model_seq_id} already names a model of {run}.")
    return submit_json(
        run, 0, Kind.CREATE_MODEL, {**spec, "answer": describe_abilities(base_model)}
    )


def find_offered(job: TrainerJob, fields: Fields) -> BaseModel:
    """A job trains the base model that it was made for."""
    name = fields.text("base_model")
    try:
        found = find_base_model(name)
    except NotFound as error:
        raise UserError(error.message, field="base_model") from None
    if found != job.base_model:
        raise UserError(
            f"The trainer job {job.job_id} is for {job.asked_model}, not for {name[:200]}: create"
            " another job for it.",
            field="base_model",
        )
    return found


def read_shape(fields: Fields, is_reference: bool) -> dict[str, Any]:
    """Rank 0 is all weights. Without an alpha it is twice the rank."""
    if is_reference:
        return {"rank": REFERENCE_RANK}
    head = {"projection_head_dim": fields.whole("projection_head_dim", 0, most=MOST_PROJECTED)}
    lora = fields.inner("lora_config")
    method = lora.text("init_method", "kaiming")
    if method not in INIT_METHODS:
        raise UserError(
            f"lora_config.init_method is {method[:40]!r}: {' or '.join(INIT_METHODS)} is offered.",
            field="lora_config.init_method",
        )
    rank = lora.whole("rank", CLIENT_RANK, most=MAX_RANK)
    if rank == 0:
        return {"rank": 0, **head}
    return {
        "rank": rank,
        **head,
        "alpha": float(lora.whole("alpha", 2 * rank, least=1, most=2**20)),
        "seed": lora.whole("seed", 0, least=-LARGEST),
        **{flag: lora.flag(flag, True) for flag in LORA_FLAGS},
    }


def describe_abilities(base_model: BaseModel) -> dict[str, Any]:
    """What a client refuses by itself unless its model says that it can."""
    return {
        "supports_reinforce": "reinforce" in LOSS_INPUTS,
        "supports_router_replay": has_experts(base_model),
    }


@transaction.atomic
def unload_model(*, job: TrainerJob, fields: Fields) -> Operation:
    """After everything that was asked before. It brings no number of its own; once more is the
    same.
    """
    run = find_model(job, fields.text("model_id"))
    Run.objects.select_for_update().get(pk=run.pk)
    last = run.operations.order_by("seq").last()
    if last is not None and last.kind == Kind.UNLOAD_MODEL:
        last.run = run
        return last
    seq = -1 if last is None else last.seq
    return submit_operation(run, seq=seq + 1, kind=Kind.UNLOAD_MODEL, payload=b"{}")
