"""One operation of a run's log -> one call of the engine, and what is stored of it."""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings

from training.engine.core import Engine
from training.engine.paging import Page
from training.errors import InvalidInput
from training.requests import POLICY_METRICS
from training.types import (
    AdamParams,
    DimuonParams,
    ForwardBackward,
    ForwardBackwardOutput,
    LoraSpec,
    OptimizerParams,
    StepOptions,
)
from webapp.checkpoints.exports import merge_saved
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import check_name, find_folder, find_saved, register_checkpoint
from webapp.core.errors import UserError
from webapp.deployments.calls import follow_inflight, open_sampling_session
from webapp.runs.custom_losses import attach_loss
from webapp.runs.methods import METHODS
from webapp.runs.models import Operation, Run
from webapp.runs.services import finish_client_run, note_shared_head
from webapp.wire.passes import JSON, PROTOBUF, decode_forward_backward, encode_output
from workers.disagreement import Disagreement, Seen
from workers.repeats import Passes
from workers.saves import choose_previous, export_weights, make_folder_name, save_sampler
from workers.signal import Signal
from workers.space import check_save

EPHEMERAL_SECONDS = 86_400  # of a sampling client's weights, after its session has ended
NO_PAYLOAD: Mapping[str, Any] = {}
STEP_OPTIONS = tuple(option.name for option in fields(StepOptions))  # of an optim_step's payload

Kind = Operation.Kind
Status = Operation.Status


@dataclass(slots=True, kw_only=True)
class Tally:
    """What went into the next optimizer step so far."""

    loss: float = 0.0
    weight: float = 0.0
    num_tokens: int = 0
    policy: dict[str, float] = field(default_factory=dict)  # each metric times its tokens
    policy_tokens: int = 0  # with an advantage: what the metrics are means over
    custom: dict[str, float] = field(default_factory=dict)  # a custom loss's; means times datums
    custom_datums: dict[str, float] = field(default_factory=dict)  # behind each of its means
    disagreement: Disagreement = field(default_factory=Disagreement)  # with who sampled
    signal: Signal = field(default_factory=Signal)  # what there is to learn from samples
    seconds: float = 0.0  # of the device, this run's share
    spoiled_by: int | None = None  # the seq of a forward_backward whose gradients are missing


@dataclass(slots=True, kw_only=True, eq=False)
class Held:
    """A run whose weights are in this process."""

    run: Run
    engine: Engine
    seq: int = -1  # the log up to here is in the weights
    tally: Tally = field(default_factory=Tally)
    unsaved_bytes: int = 0  # of payloads that no autosave covers
    autosaved_at: float = field(default_factory=time.monotonic)
    autosave_seconds: float = 0.0  # how long the last one took
    measured_tokens: int = 0  # of the largest pass whose memory was measured
    page: Page | None = None  # while it is not on the device
    seen: Seen = field(default_factory=Seen)  # samples that were learned from before
    passes: Passes = field(default_factory=Passes)  # forward only: a client's own evaluation
    is_settled: bool = False  # nothing but weights and optimizer to lose: time for an autosave


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What an operation leaves: bytes for who waits, and numbers where a step was made."""

    result: bytes
    content_type: str = JSON
    metrics: Mapping[str, float] | None = None
    num_tokens: int = 0


def execute(held: Held, operation: Operation) -> Done:
    """Anything but forward_backward, which `gpu` executes for several runs at once.

    Raises InvalidInput or UserError where the caller is to blame.
    """
    catch_up(held, operation)
    payload = json.loads(bytes(operation.payload or b"{}"))
    done = VERBS[operation.kind](held, operation, payload)
    held.seq = operation.seq
    return done


def catch_up(held: Held, operation: Operation) -> None:
    """Note what ended without the device between its last operation and this one.

    Gradients of a part of a batch are no gradients: the step that they were for is refused.
    """
    before = operation.seq - 1
    if held.seq >= before:
        return
    skipped = Operation.objects.filter(run=held.run, seq__gt=held.seq, seq__lte=before)
    failed = skipped.filter(kind__in=(Kind.FORWARD_BACKWARD, Kind.OPTIM_STEP), forward_only=False)
    failed = failed.filter(status__in=(Status.FAILED, Status.REFUSED)).order_by("seq")
    for seq, kind, status, worker in failed.values_list("seq", "kind", "status", "worker"):
        if kind == Kind.FORWARD_BACKWARD:
            spoil(held, seq)
        elif status == Status.FAILED and not worker:  # it waited for a number that never came
            drop_gradients(held)
    held.seq = before


def spoil(held: Held, seq: int) -> None:
    held.is_settled = False  # an autosave would not remember it
    if held.tally.spoiled_by is None:
        held.tally.spoiled_by = seq


def drop_gradients(held: Held) -> None:
    held.tally = Tally()
    held.engine.drop_gradients(held.run.pk)


def read_request(operation: Operation) -> ForwardBackward:
    _, _, request = decode_forward_backward(bytes(operation.payload or b""))
    return attach_loss(operation.run, request)


def note_pass(
    held: Held,
    operation: Operation,
    request: ForwardBackward,
    output: ForwardBackwardOutput,
    seconds: float,
) -> Done:
    """Count a forward_backward that the engine has done."""
    held.seq = operation.seq
    held.unsaved_bytes += len(operation.payload or b"")
    if not request.forward_only:
        count_output(held, output, request, seconds)
        held.is_settled = False
    elif not held.run.recipe:
        held.passes.count(request, output)
    return Done(result=encode_output(output), content_type=PROTOBUF)


def count_output(
    held: Held, output: ForwardBackwardOutput, request: ForwardBackward, seconds: float
) -> None:
    """Weights may be anything; where they are not shares, scored tokens count alike.

    Some are negative where a program computes its loss by itself and sends the slopes: their sum
    says nothing, and the mean over it would jump about.
    """
    tally, weight = held.tally, output.metrics.get("weights:sum", 0.0)
    are_shares = weight > 0 and output.metrics["weights:min"] >= 0
    tally.loss += output.metrics["loss:sum"]
    tally.weight += weight if are_shares else output.metrics.get("num_scored:sum", 0.0)
    tally.num_tokens += request.num_tokens
    tally.seconds += seconds
    count_policy(tally, output.metrics, request)
    count_custom(tally, output.metrics)
    tally.disagreement.count(request, output, held.seen)
    tally.signal.count(request)


def count_policy(tally: Tally, metrics: Mapping[str, float], request: ForwardBackward) -> None:
    """One that a part of the step lacks was not finite there, and the step has none."""
    if not any(f"{key}:mean" in metrics for key in POLICY_METRICS):
        return
    weight = sum(int(np.count_nonzero(datum.inputs["advantages"])) for datum in request.data)
    tally.policy_tokens += weight
    for key in POLICY_METRICS:
        value = metrics.get(f"{key}:mean", math.nan)
        tally.policy[key] = tally.policy.get(key, 0.0) + weight * value


def count_custom(tally: Tally, metrics: Mapping[str, float]) -> None:
    """What a custom loss tells, by the keys that it gave: they are curves on the run's page."""
    num_datums = metrics["num_datums:sum"]
    for key, value in metrics.items():
        if key.startswith("custom/"):
            is_mean = key.endswith(":mean")
            share = value * num_datums if is_mean else value
            tally.custom[key] = tally.custom.get(key, 0.0) + share
            if is_mean:
                tally.custom_datums[key] = tally.custom_datums.get(key, 0.0) + num_datums


def create_model(held: Held, _operation: Operation, payload: Mapping[str, Any]) -> Done:
    spec = {key: value for key, value in payload.items() if key not in ("optimizer", "answer")}
    kind = payload.get("optimizer", "adamw")
    held.engine.create_adapter(held.run.pk, LoraSpec(**spec), kind)
    note_limits(held)
    held.tally = Tally()
    return answer({"model_id": held.run.model_id, "type": "create_model"}, payload)


def note_limits(held: Held) -> None:
    """What the run's page has to say of the adapter that it now has."""
    if held.engine.shares_trained_head(held.run.pk):
        note_shared_head(held.run)


def load_weights(held: Held, _operation: Operation, payload: Mapping[str, Any]) -> Done:
    checkpoint = Checkpoint.objects.select_related("run").get(pk=payload["checkpoint"])
    if checkpoint.deleted_at is not None:
        raise InvalidInput(f"the checkpoint {checkpoint.name} was deleted: load another one")
    if checkpoint.is_full is not held.run.is_full:
        raise InvalidInput(f"{checkpoint.name} is of a run that trains other weights: load another")
    folder, is_adapter = find_folder(checkpoint), bool(payload.get("is_adapter"))
    if is_adapter:  # into the run's own, which keeps its rank and layers
        held.engine.load_adapter(held.run.pk, folder)
    else:
        held.engine.load_weights(
            held.run.pk,
            folder,
            optimizer=bool(payload["optimizer"]),
            kind=payload.get("kind", "adamw"),
        )
    note_limits(held)
    held.tally = Tally()
    held.is_settled = True  # the checkpoint may go; what came of it stays in the autosave
    held.autosaved_at = -math.inf
    answered = {"path": checkpoint.tinker_path, "model_id": held.run.model_id}
    kind = "load_adapter" if is_adapter else "load_weights"
    return answer({**answered, "type": kind}, payload)


def optim_step(held: Held, _operation: Operation, payload: Mapping[str, Any]) -> Done:
    check_whole(held)
    tally, held.tally = held.tally, Tally()
    started = time.perf_counter()
    output = held.engine.optim_step(held.run.pk, read_params(payload), read_options(payload))
    seconds = tally.seconds + time.perf_counter() - started
    held.is_settled = True
    metrics = {**output.metrics, **describe_tally(tally, seconds), **held.passes.take()}
    if held.run.recipe and METHODS[held.run.recipe].config.TELLS_LOSS:
        metrics.pop("loss", None)
    done = answer({"metrics": dict(output.metrics)})
    return Done(result=done.result, metrics=metrics, num_tokens=tally.num_tokens)


def read_params(payload: Mapping[str, Any]) -> OptimizerParams:
    if "dimuon_params" in payload:
        return DimuonParams(**payload["dimuon_params"])
    return AdamParams(**payload["adam_params"])


def read_options(payload: Mapping[str, Any]) -> StepOptions:
    return StepOptions(**{key: payload[key] for key in STEP_OPTIONS if key in payload})


def check_whole(held: Held) -> None:
    seq = held.tally.spoiled_by
    if seq is None:
        return
    drop_gradients(held)
    raise InvalidInput(
        f"the forward_backward with seq_id {seq} failed, so the gradients of this step are only a"
        " part of what was asked for: no step was made, and they were dropped; go on with the"
        " next forward_backward"
    )


def describe_tally(tally: Tally, seconds: float) -> dict[str, float]:
    numbers = {"num_tokens": float(tally.num_tokens)}
    if tally.weight > 0:
        numbers["loss"] = tally.loss / tally.weight
    for key, total in tally.policy.items():
        if math.isfinite(total):
            numbers[key] = total / tally.policy_tokens
    for key, total in tally.custom.items():
        numbers[key] = total / tally.custom_datums.get(key, 1.0)
    numbers |= {**tally.disagreement.describe(), **tally.signal.describe()}
    if tally.num_tokens and seconds > 0:
        numbers["tokens_per_second"] = tally.num_tokens / seconds
    return numbers


def save_weights(held: Held, operation: Operation, payload: Mapping[str, Any]) -> Done:
    checkpoint = save_checkpoint(held, operation, payload, Checkpoint.Kind.TRAINING)
    answered = {"path": checkpoint.tinker_path, "checkpoint": checkpoint.pk}
    return answer({**answered, "type": "save_weights"}, payload)


def save_weights_for_sampler(held: Held, operation: Operation, payload: Mapping[str, Any]) -> Done:
    """With a `sampling_session_seq_id` the answer is a session that samples from these weights."""
    checkpoint = save_checkpoint(held, operation, payload, Checkpoint.Kind.SAMPLER)
    answered: dict[str, Any] = {"path": checkpoint.tinker_path, "sampling_session_id": None}
    seq_id = payload.get("sampling_session_seq_id")
    if seq_id is not None and held.run.session is not None:
        opened = open_sampling_session(
            session=held.run.session, seq_id=seq_id, checkpoint=checkpoint
        )
        answered = {"path": None, "sampling_session_id": opened.pk}
    if checkpoint.is_inflight:
        follow_inflight(checkpoint)
    if precision := payload.get("merge"):
        merge_saved(checkpoint, precision)
    kind = {"checkpoint": checkpoint.pk, "type": "save_weights_for_sampler"}
    if checkpoint.is_full:
        kind["checkpoint_type"] = checkpoint.type
    return answer({**answered, **kind}, payload)


def save_weights_external(held: Held, operation: Operation, payload: Mapping[str, Any]) -> Done:
    checkpoint = save_checkpoint(held, operation, payload, Checkpoint.Kind.EXTERNAL)
    answered = {"path": checkpoint.tinker_path, "size_bytes": checkpoint.size_bytes}
    return answer({**answered, "type": "save_weights_external"})


def save_checkpoint(
    held: Held, operation: Operation, payload: Mapping[str, Any], kind: str
) -> Checkpoint:
    """Once for each operation: what a worker saved before it died is found, not saved again."""
    saved_before = find_saved(held.run, operation.seq)
    if saved_before is not None:
        return saved_before
    is_ephemeral = bool(payload.get("is_ephemeral")) or not payload.get("name")
    name = payload.get("name") or f"sampler-{operation.seq:06d}"
    overwrite = bool(payload.get("overwrite"))
    check_name(held.run, kind, name, overwrite=overwrite)
    path = f"checkpoints/{held.run.pk}/{make_folder_name(name)}-{operation.seq}"
    folder = Path(settings.HONE_HOME) / path
    is_sampler = kind == Checkpoint.Kind.SAMPLER
    previous = choose_previous(held.run, payload) if is_sampler else None
    is_delta = previous is not None
    check_save(held.engine, held.run, kind, name, is_delta=is_delta, overwrite=overwrite)
    started = time.perf_counter()
    if kind == Checkpoint.Kind.EXTERNAL:
        saved = export_weights(held.engine, held.run, folder, payload)
    elif kind == Checkpoint.Kind.TRAINING:
        saved = held.engine.save_weights(held.run.pk, folder, optimizer=True)
    else:
        saved = save_sampler(held.engine, held.run, folder, previous)
    default_ttl = EPHEMERAL_SECONDS if is_ephemeral else None
    register = partial(
        register_checkpoint,
        run=held.run,
        kind=kind,
        name=name,
        seq=operation.seq,
        step=Run.objects.values_list("step", flat=True).get(pk=held.run.pk),
        path=path,
        saved=saved,
        previous=previous if saved.type == "delta" else None,
        export_milliseconds=1000 * (time.perf_counter() - started),
        ttl_seconds=payload.get("ttl_seconds") or default_ttl,
        is_ephemeral=is_ephemeral,
        is_inflight=bool(payload.get("is_inflight")),
        is_encrypted=bool(payload.get("recipients")),
        overwrite=overwrite,
        user_metadata=payload.get("user_metadata"),
    )
    try:
        return register()
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def unload_model(held: Held, _operation: Operation, _payload: Mapping[str, Any]) -> Done:
    """Its weights go when the device is tidied, as those of every run that is over."""
    finish_client_run(held.run, "success")
    return answer({"model_id": held.run.model_id, "type": "unload_model"})


def answer(content: Mapping[str, Any], payload: Mapping[str, Any] = NO_PAYLOAD) -> Done:
    """Some dialects have their own words for a part of it: their payloads bring it along."""
    return Done(result=json.dumps({**content, **payload.get("answer", {})}).encode())


VERBS: Mapping[str, Callable[[Held, Operation, Mapping[str, Any]], Done]] = {
    Kind.CREATE_MODEL: create_model,
    Kind.LOAD_WEIGHTS: load_weights,
    Kind.OPTIM_STEP: optim_step,
    Kind.SAVE_WEIGHTS: save_weights,
    Kind.SAVE_WEIGHTS_FOR_SAMPLER: save_weights_for_sampler,
    Kind.SAVE_WEIGHTS_EXTERNAL: save_weights_external,
    Kind.UNLOAD_MODEL: unload_model,
}
