"""Writes of the Tinker dialect to weights: saved, exported, and models that begin with them."""

import re
from typing import Any

from training.encryption import read_recipients
from webapp.accounts.credentials import find_actor
from webapp.accounts.models import Actor
from webapp.checkpoints.copies import copy_checkpoint, find_destination
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import find_by_tinker_path, find_loadable
from webapp.core.errors import UserError
from webapp.fleet.models import BaseModel
from webapp.runs.models import Operation, Run
from webapp.runs.queue import MAX_SEQ
from webapp.runs.services import LORA_FLAGS, open_client_run
from webapp.tinker.fields import Fields
from webapp.tinker.services import (
    find_offered,
    find_run,
    find_session,
    read_optimizer,
    refusing,
    submit_json,
)

TTL_SECONDS = range(3600, 10 * 365 * 86_400 + 1)
# The SDK puts names into addresses as they are: "a?b" would be deleted as "a".
NAME = re.compile(r"(?!\s)[^/\\?#%\x00-\x1f\x7f\u2028\u2029]{1,199}(?<!\s)")
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


def check_same_model(checkpoint: Checkpoint, base_model: BaseModel) -> None:
    if checkpoint.base_model_id != base_model.pk:
        raise UserError(
            f"{checkpoint.tinker_path} belongs to {checkpoint.base_model}, not to {base_model}."
        )


def check_same_shape(checkpoint: Checkpoint, run: Run) -> None:
    if checkpoint.is_full is not run.is_full:
        theirs, ours = (
            "all weights" if each.is_full else "an adapter" for each in (checkpoint, run)
        )
        raise UserError(
            f"{checkpoint.tinker_path} holds {theirs}, this model has {ours}: create a training"
            " client from the checkpoint instead."
        )
    theirs, ours = ({"rank": each.rank} | each.lora for each in (checkpoint.run, run))
    for name in ("rank", *LORA_FLAGS, "train_embed"):
        if theirs.get(name, False) != ours.get(name, False):
            raise UserError(
                f"{checkpoint.tinker_path} has {name} {theirs.get(name)}, this model"
                f" {ours.get(name)}: create a training client from the checkpoint instead."
            )


def load_weights(*, actor: Actor, fields: Fields) -> Operation:
    """Into a model that exists: its weights become the checkpoint's."""
    run = find_run(actor, fields.text("model_id"))
    seq = fields.whole("seq_id", least=1, most=MAX_SEQ)
    with refusing(run, seq, Kind.LOAD_WEIGHTS):
        checkpoint = find_source(actor, fields)
        check_same_model(checkpoint, run.base_model)
        check_same_shape(checkpoint, run)
        optimizer = fields.flag("optimizer", False)
        if optimizer and not checkpoint.has_optimizer:
            raise UserError(f"{checkpoint.tinker_path} was saved without its optimizer.")
        if optimizer and checkpoint.run.optimizer != run.optimizer:
            raise UserError(
                f"{checkpoint.tinker_path} holds the state of {checkpoint.run.optimizer}, this"
                f" model has {run.optimizer}: load its weights alone."
            )
        payload = {"checkpoint": checkpoint.pk, "optimizer": optimizer, "kind": run.optimizer}
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


def read_name(fields: Fields) -> str:
    name = fields.text("path")
    if not NAME.fullmatch(name) or name in (".", ".."):
        raise UserError(
            f"path is the checkpoint's name, {name[:60]!r}: send 1 to 199 characters without"
            " control characters and / \\ ? # %, which cannot stand in its address, and without"
            " blanks at its ends.",
            field="path",
        )
    return name


def read_ttl(fields: Fields) -> int:
    return fields.whole("ttl_seconds", least=TTL_SECONDS[0], most=TTL_SECONDS[-1])
