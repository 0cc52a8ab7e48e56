"""Training passes and optimizer steps of a trainer's models."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from training.errors import InvalidInput
from training.requests import check_request
from training.types import GRAD_NORM_METRICS, NORMALIZATIONS, ForwardBackward
from webapp.core.errors import UserError
from webapp.core.fields import Fields
from webapp.firetitan.models import TrainerJob
from webapp.firetitan.tensors import read_pass
from webapp.firetitan.trainer_services import find_model
from webapp.runs.clients import check_open, refusing, submit_json
from webapp.runs.models import Operation, Run
from webapp.runs.optimizers import read_adam
from webapp.runs.queue import MAX_SEQ, submit_operation
from webapp.runs.refusals import fail_on_arrival
from webapp.runs.room import check_data
from webapp.runs.services import note_reading
from webapp.wire.passes import encode_forward_backward

Kind = Operation.Kind


def run_pass(*, job: TrainerJob, fields: Fields, body: bytes, forward_only: bool) -> Operation:
    """What cannot be computed is a broken promise: a client that gets a 4xx here gives its model
    up.
    """
    run = find_model(job, fields.text("model_id"))
    seq = fields.whole("seq_id", least=1, most=MAX_SEQ)
    with refusing(run, seq, Kind.FORWARD_BACKWARD, forward_only=forward_only):
        check_open(run)
        try:
            request = read_request(run, fields, forward_only)
        except (UserError, InvalidInput) as error:
            return fail_on_arrival(
                run,
                seq=seq,
                kind=Kind.FORWARD_BACKWARD,
                error=str(error),
                body=body,
                forward_only=forward_only,
            )
        note_reading(run, request.loss_fn)
        return submit_operation(
            run,
            seq=seq,
            kind=Kind.FORWARD_BACKWARD,
            payload=encode_forward_backward(run.model_id, seq, request),
            num_tokens=request.weight,
            forward_only=forward_only,
        )


def read_request(run: Run, fields: Fields, forward_only: bool) -> ForwardBackward:
    if not forward_only:
        check_trains(run)
    name = "forward_input" if forward_only else "forward_backward_input"
    request = read_pass(fields.inner(name), forward_only=forward_only)
    check_request(request, run.base_model.vocab_size, run.base_model.context_tokens)
    if not forward_only:
        check_data(run, request.data)
    return request


def check_trains(run: Run) -> None:
    if run.is_reference:
        raise UserError(
            "This model is a reference, with the base model's own weights: it takes forward alone."
        )


def optim_step(*, job: TrainerJob, fields: Fields) -> Operation:
    run = find_model(job, fields.text("model_id"))
    seq = fields.whole("seq_id", least=1, most=MAX_SEQ)
    with refusing(run, seq, Kind.OPTIM_STEP):
        check_trains(run)
        return submit_json(run, seq, Kind.OPTIM_STEP, read_step(fields))


def read_step(fields: Fields) -> Mapping[str, Any]:
    """The parameters, and beside them what else the step is asked."""
    given = dict(fields.inner("adam_params").values)
    told = read_told(given.pop("emit_grad_norm_metrics", None))
    normalization = fields.text("grad_accumulation_normalization", "none")
    if normalization not in NORMALIZATIONS:
        raise UserError(
            f"grad_accumulation_normalization is {normalization[:60]!r}: send one of"
            f" {', '.join(NORMALIZATIONS)}.",
            field="grad_accumulation_normalization",
        )
    return {
        "adam_params": asdict(read_adam(Fields(given, "adam_params."))),
        "grad_accumulation_normalization": normalization,
        "emit_grad_norm_metrics": told,
    }


def read_told(value: Any) -> str:
    """How much is told of the gradients' norms: true is the basic kind of it."""
    if value is None or isinstance(value, bool):
        return "basic" if value else "off"
    if value not in GRAD_NORM_METRICS:
        raise UserError(
            f"adam_params.emit_grad_norm_metrics is {value!r:.60}: send true, false or one of"
            f" {', '.join(GRAD_NORM_METRICS)}.",
            field="adam_params.emit_grad_norm_metrics",
        )
    return str(value)
