"""Custom losses: stored once, checked, and found again by whoever computes with them."""

import json
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from typing import Any

from django.db import IntegrityError, transaction

from training.graphs import CustomLoss as Checked
from training.graphs import read_custom_loss
from training.requests import CUSTOM, LOSS_ID
from training.types import ForwardBackward
from webapp.core.errors import UserError
from webapp.runs.models import CustomLoss, Run, Session

MAX_LOSSES = 200  # of one session; a program makes each of its losses once
MAX_GRAPH_BYTES = 2**20


def create_custom_loss(
    *, session: Session, custom_loss_seq_id: int, name: str, inputs: Any, graph: Any
) -> CustomLoss:
    """A retry with the same number and content returns the first one."""
    read_custom_loss(name=name, inputs=inputs, graph=graph)
    text = json.dumps(graph)
    if len(text) > MAX_GRAPH_BYTES:
        raise UserError(f"graph has {len(text)} bytes, the most is {MAX_GRAPH_BYTES}.")
    content = json.dumps([name, inputs, graph], sort_keys=True)
    loss = CustomLoss(
        session=session,
        custom_loss_seq_id=custom_loss_seq_id,
        name=name,
        inputs=inputs,
        graph=text,
        digest=sha256(content.encode()).hexdigest(),
    )
    return _find_first(loss) or _store(loss)


def _store(loss: CustomLoss) -> CustomLoss:
    if loss.session.custom_losses.count() >= MAX_LOSSES:
        raise UserError(
            f"This session has {MAX_LOSSES} custom losses, the most there can be: create each"
            " once and use it again."
        )
    try:
        with transaction.atomic():
            loss.save(force_insert=True)
    except IntegrityError:
        first = _find_first(loss)
        if first is None:
            raise
        return first
    return loss


def _find_first(loss: CustomLoss) -> CustomLoss | None:
    seq_id = loss.custom_loss_seq_id
    first = loss.session.custom_losses.filter(custom_loss_seq_id=seq_id).first()
    if first is not None and first.digest != loss.digest:
        raise UserError(
            f"custom_loss_seq_id {seq_id} was already used for another loss: send this one with"
            " the next number.",
            field="custom_loss_seq_id",
        )
    return first


def attach_loss(run: Run, request: ForwardBackward) -> ForwardBackward:
    """The loss that the request's config names by its id, where it names one."""
    loss_id = request.config.get(LOSS_ID)
    if request.loss_fn != CUSTOM or not isinstance(loss_id, str):
        return request
    if not CustomLoss.objects.filter(pk=loss_id, session=run.session_id).exists():
        raise UserError(
            f"config 'loss_id' is {loss_id[:60]!r}: the session of this model has no such custom"
            " loss. Create it with create_custom_loss.",
            field=LOSS_ID,
        )
    return replace(request, custom=_read_loss(loss_id))


@lru_cache(maxsize=64)
def _read_loss(pk: str) -> Checked:
    """Rows never change."""
    loss = CustomLoss.objects.get(pk=pk)
    return read_custom_loss(name=loss.name, inputs=loss.inputs, graph=json.loads(loss.graph))
