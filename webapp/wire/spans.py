"""Where the tokens of a datum come from: spans that tile its input and its targets."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from webapp.core.errors import UserError
from webapp.wire import wire_pb2 as pb


def read_spans(
    datum: pb.Datum, num_tokens: int, num_targets: int, where: str
) -> NDArray[np.bool_] | None:
    """Which targets were sampled, rather than given in a prompt. None: the datum does not say."""
    of_input, of_targets = datum.model_input_spans, datum.loss_fn_input_spans
    if bool(of_input) != bool(of_targets):
        missing = "loss_fn_input_spans" if of_input else "model_input_spans"
        raise UserError(f"{where}: {missing} are missing: the two lists of spans come together.")
    if not of_input:
        return None
    _read_tiles(of_input, num_tokens, f"{where}: model_input_spans", "model_input")
    return _read_tiles(of_targets, num_targets, f"{where}: loss_fn_input_spans", "target_tokens")


def _read_tiles(
    spans: Iterable[pb.ProvenanceSpan], length: int, where: str, what: str
) -> NDArray[np.bool_]:
    sampled = np.zeros(length, np.bool_)
    at = 0
    for number, message in enumerate(spans):
        span = _read_span(message, f"{where}[{number}]")
        if span.length <= length - at:
            is_sampled = message.WhichOneof("span") == "sampled_tokens"
            sampled[at : at + span.length] = is_sampled
        at += span.length
    if at != length:
        raise UserError(
            f"{where} cover {at} positions, but {what} has {length}: they must tile it."
        )
    return sampled


def _read_span(message: pb.ProvenanceSpan, where: str) -> pb.SequenceSpan:
    kind = message.WhichOneof("span")
    if kind is None:
        raise UserError(f"{where} is empty: send prompt_tokens or sampled_tokens.")
    span = message.sampled_tokens if kind == "sampled_tokens" else message.prompt_tokens
    if not span.sequence_id:
        raise UserError(f"{where} names no sequence_id: send the one that its sample came with.")
    if span.offset < 0 or span.length < 0:
        raise UserError(
            f"{where} has the offset {span.offset} and the length {span.length}: send 0 or more."
        )
    return span
