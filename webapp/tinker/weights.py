"""Writes of the Tinker dialect to weights: saved, exported, and models that begin with them."""

from typing import Any

from training.encryption import read_recipients
from webapp.accounts.credentials import find_actor
from webapp.accounts.models import Actor
from webapp.checkpoints.copies import copy_checkpoint, find_destination
from webapp.checkpoints.loading import check_same_model, plan_load
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.names import read_name, read_ttl
from webapp.checkpoints.services import find_by_tinker_path, find_loadable
from webapp.core.errors import UserError
from webapp.core.fields import Fields
from webapp.runs.clients import find_run, find_session, open_client_run, refusing, submit_json
from webapp.runs.models import Operation
from webapp.runs.queue import MAX_SEQ
from webapp.tinker.services import find_offered, read_optimizer

KINDS = ("snapshot", "inflight")

Kind = Operation.Kind


def create_model_from_checkpoint(*, actor: Actor, fields: Fields) -> Operation:
    session = find_session(actor, fields.text("session_id"))
    checkpoint = find_source(actor, fields)
    optimizer = fields.flag("optimizer", False)
    kind = read_optimizer(fields, checkpoint.run.optimizer if optimizer else "adamw")
    name = fields.text("base_model", checkpoint.run.asked_model)
    if fields.has("base_model"):
        check_same_model(checkpoint, find_offered(name))
    run = open_client_run(
        actor=actor,
        session=session,
        model_seq_id=fields.whole("model_seq_id"),
        base_model=checkpoint.base_model,
        asked_model=name,
        parent=checkpoint,
        with_optimizer=optimizer,
        optimizer=kind,
        user_metadata=fields.document("user_metadata"),
    )
    payload = {"checkpoint": checkpoint.pk, "optimizer": optimizer, "kind": kind}
    return submit_json(run, 0, Kind.LOAD_WEIGHTS, payload)


def find_source(actor: Actor, fields: Fields) -> Checkpoint:
    return find_loadable(choose_reader(actor, fields), fields.text("path"))


def choose_reader(actor: Actor, fields: Fields) -> Actor:
    """With an access token, which is another account's key: that account."""
    if not fields.has("weights_access_token"):
        return actor
    reader = find_actor(fields.text("weights_access_token"))
    if reader is None:
        raise UserError(
            "weights_access_token is unknown or was revoked: send an API key of the project that"
            " has the weights.",
            field="weights_access_token",
        )
    return reader


def copy_weights(
    *, actor: Actor, fields: Fields, access_token: str, idempotency_key: str
) -> Checkpoint:
    """To a project, or to a free place of a session; any kind, and the copy keeps it."""
    if access_token:
        fields = Fields({**fields.values, "weights_access_token": access_token})
    source = find_by_tinker_path(choose_reader(actor, fields), fields.text("source_path"))
    ttl_seconds = read_ttl(fields) if fields.has("ttl_seconds") else None
    if fields.has("session_id"):
        session = find_session(actor, fields.text("session_id"))
        if session.finished_at is not None:
            raise UserError("This session has ended: open another one.", field="session_id")
        return copy_checkpoint(
            actor=actor,
            source=source,
            project=session.project,
            session=session,
            model_seq_id=fields.whole("model_seq_id"),
            ttl_seconds=ttl_seconds,
        )
    project = find_destination(actor, fields.text("destination_project_id"))
    key = idempotency_key[:200]
    return copy_checkpoint(
        actor=actor, source=source, project=project, key=key, ttl_seconds=ttl_seconds
    )


def load_weights(*, actor: Actor, fields: Fields) -> Operation:
    """Into a model that exists: its weights become the checkpoint's."""
    run = find_run(actor, fields.text("model_id"))
    seq = fields.whole("seq_id", least=1, most=MAX_SEQ)
    with refusing(run, seq, Kind.LOAD_WEIGHTS):
        checkpoint = find_source(actor, fields)
        payload = plan_load(run, checkpoint, optimizer=fields.flag("optimizer", False))
        return submit_json(run, seq, Kind.LOAD_WEIGHTS, payload)


def save_weights(*, actor: Actor, fields: Fields, kind: str) -> Operation:
    run = find_run(actor, fields.text("model_id"))
    seq = fields.whole("seq_id", least=1, most=MAX_SEQ)
    with refusing(run, seq, kind):
        return submit_json(run, seq, kind, read_save(fields, kind))


def read_save(fields: Fields, kind: str) -> dict[str, Any]:
    if kind == Kind.SAVE_WEIGHTS_FOR_SAMPLER:
        is_inflight = read_kind(fields) == "inflight"
        if not fields.has("path"):
            return read_ephemeral_save(fields, is_inflight)
        if is_inflight:
            raise UserError("kind inflight is for sampling clients: leave path out.", field="kind")
    payload: dict[str, Any] = {
        "name": read_name(fields),
        "ttl_seconds": read_ttl(fields) if fields.has("ttl_seconds") else None,
        # Only save_state lets its caller say; the others replace what has the name.
        "overwrite": kind != Kind.SAVE_WEIGHTS or fields.flag("overwrite", False),
        "user_metadata": fields.document("user_metadata"),
    }
    if fields.has("age_encryption_recipients"):
        payload["recipients"] = fields.list_of("age_encryption_recipients", str)
        read_recipients(payload["recipients"])
    return payload


def read_kind(fields: Fields) -> str:
    kind = fields.text("kind", "snapshot")
    if kind not in KINDS:
        raise UserError(f"kind is {kind!r:.60}: send {' or '.join(KINDS)}.", field="kind")
    return kind


def read_ephemeral_save(fields: Fields, is_inflight: bool) -> dict[str, Any]:
    """For a sampling client; inflight ones all follow the run's newest inflight save."""
    return {
        "sampling_session_seq_id": fields.whole("sampling_session_seq_id"),
        "is_ephemeral": True,
        "is_inflight": is_inflight,
        "ttl_seconds": read_ttl(fields) if fields.has("ttl_seconds") else None,
    }
