"""What was in a step's batch: rows where a recipe noted them, datums where a client sent them."""

from hashlib import blake2b
from typing import Any

import numpy as np
from django.db.models import Max

from training.types import Datum, FloatArray
from webapp.runs.models import Operation, Run
from webapp.wire.passes import PROTOBUF, decode_forward_backward, decode_output
from workers.diagnosing.thresholds import BATCH_SHOWN

Kind = Operation.Kind

MOST_REQUESTS = 16  # of one step, that are opened
MOST_BEHIND = 64  # steps: the bytes of older ones are gone


def describe_batch(run: Run, step: int) -> dict[str, Any]:
    """Those that cost most come first."""
    rows = run.row_losses.filter(step=step).order_by("-loss")
    if shown := list(rows.values("row", "loss")[:BATCH_SHOWN]):
        return {"batch": shown, "num_datums": rows.count()}
    behind = run.step - step
    if not 0 <= behind <= MOST_BEHIND:
        return {}
    done = run.operations.filter(kind=Kind.OPTIM_STEP, status=Operation.Status.DONE)
    seq = done.order_by("-seq").values_list("seq", flat=True)[behind : behind + 1].first()
    return {} if seq is None else describe_requests(run, before=seq)


def describe_requests(run: Run, *, before: int) -> dict[str, Any]:
    """Of the forward_backwards that went into the optim_step with this seq."""
    steps = run.operations.filter(kind=Kind.OPTIM_STEP, seq__lt=before)
    after = steps.aggregate(last=Max("seq"))["last"] or -1
    passes = run.operations.filter(
        kind=Kind.FORWARD_BACKWARD, forward_only=False, seq__gt=after, seq__lt=before
    )
    datums = [each for row in passes.order_by("seq")[:MOST_REQUESTS] for each in open_request(row)]
    datums.sort(key=lambda each: -(each["loss"] if each["loss"] is not None else -np.inf))
    return {"batch": datums[:BATCH_SHOWN], "num_datums": len(datums)} if datums else {}


def open_request(operation: Operation) -> list[dict[str, Any]]:
    """Once an autosave covers it, its bytes are gone and its size is what is left."""
    if operation.payload is None:
        whole = {"seq": operation.seq, "datum": None, "tokens": operation.num_tokens}
        return [{**whole, "loss": None, "digest": operation.digest[:12]}]
    _, _, request = decode_forward_backward(bytes(operation.payload))
    is_read = operation.result is not None and operation.content_type == PROTOBUF
    outputs = decode_output(bytes(operation.result or b"")).logprobs if is_read else ()
    scored = list(outputs) if len(outputs) == len(request.data) else [None] * len(request.data)
    return [
        {
            "seq": operation.seq,
            "datum": index,
            "tokens": len(datum.tokens),
            "loss": measure_loss(datum, logprobs),
            "digest": blake2b(datum.tokens.tobytes(), digest_size=6).hexdigest(),
        }
        for index, (datum, logprobs) in enumerate(zip(request.data, scored, strict=True))
    ]


def measure_loss(datum: Datum, logprobs: FloatArray | None) -> float | None:
    """Nats a weighted token. None: it is no mean over tokens."""
    weights = datum.inputs.get("weights")
    if logprobs is None or (weights is not None and weights.size != logprobs.size):
        return None
    on = np.ones(logprobs.size) if weights is None else weights.ravel()
    total = float(on.sum())
    loss = -float((on * logprobs.ravel()).sum()) / total if total > 0 else float("nan")
    return round(loss, 4) if np.isfinite(loss) else None
