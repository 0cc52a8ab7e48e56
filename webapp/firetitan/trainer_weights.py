"""Weights of a trainer's models: saved, listed, and taken over."""

import re

from webapp.accounts.models import Actor
from webapp.checkpoints.loading import check_same_model, plan_load
from webapp.checkpoints.models import Checkpoint, CheckpointQuerySet
from webapp.checkpoints.names import read_name, read_ttl
from webapp.core.errors import NotFound, UserError
from webapp.core.fields import Fields
from webapp.firetitan.models import LONGEST_ID, TrainerJob
from webapp.firetitan.promotion import find_job_checkpoint, find_promoted, list_job_checkpoints
from webapp.firetitan.trainer_passes import check_trains
from webapp.firetitan.trainer_services import find_model
from webapp.runs.clients import refusing, submit_json
from webapp.runs.models import Operation, Run
from webapp.runs.queue import MAX_SEQ

CROSS_JOB = "cross_job://"
TYPES = ("base", "delta", "merged_base")
PRECISIONS = ("source", "bf16", "nvfp4", "mxfp8", "fp8_block128")

Kind = Operation.Kind


def save_state(*, job: TrainerJob, fields: Fields) -> Operation:
    """Its name comes back as one that the SDK will load again."""
    run, seq = find_model(job, fields.text("model_id")), read_seq(fields)
    with refusing(run, seq, Kind.SAVE_WEIGHTS):
        check_trains(run)
        name = make_label(read_name(fields))
        payload = {
            "name": name,
            "overwrite": fields.flag("overwrite", False),
            "answer": {"path": name},
            **read_lifetime(fields),
        }
        return submit_json(run, seq, Kind.SAVE_WEIGHTS, payload)


def make_label(name: str) -> str:
    """A label of DNS: the SDK saves under any name, and loads these alone."""
    label = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:LONGEST_ID].rstrip("-")
    if not label:
        raise UserError(f"path is {name[:60]!r}: it needs a letter or a digit.", field="path")
    return label


def read_lifetime(fields: Fields) -> dict[str, int]:
    """Older SDKs send one."""
    return {"ttl_seconds": read_ttl(fields)} if fields.has("ttl_seconds") else {}


def save_for_sampler(*, job: TrainerJob, fields: Fields) -> Operation:
    run, seq = find_model(job, fields.text("model_id")), read_seq(fields)
    with refusing(run, seq, Kind.SAVE_WEIGHTS_FOR_SAMPLER):
        check_trains(run)
        name, kind = read_name(fields), read_type(run, fields)
        precision = read_precision(fields, kind)
        is_merged = kind == "merged_base"
        if is_merged:
            check_has_learned(run, seq)
        payload = {
            "name": name,
            "overwrite": True,
            "checkpoint_type": "base" if is_merged else kind,
            # An adapter is whole each time; what its program called it stays with it.
            "user_metadata": {**fields.document("metadata"), "checkpoint_type": kind},
            "answer": {"path": name},
            **({"merge": precision} if is_merged else {}),
            **read_lifetime(fields),
        }
        return submit_json(run, seq, Kind.SAVE_WEIGHTS_FOR_SAMPLER, payload)


def read_type(run: Run, fields: Fields) -> str:
    kind = fields.text("checkpoint_type", "base")
    if kind not in TYPES:
        raise UserError(
            f"checkpoint_type is {kind[:40]!r}: send one of {', '.join(TYPES)}.",
            field="checkpoint_type",
        )
    is_whole = kind == "merged_base" and run.is_full
    return "base" if is_whole else kind  # all weights have nothing to merge


def check_has_learned(run: Run, seq: int) -> None:
    """Merged with an adapter that nothing has changed a model is its base."""
    before = run.operations.filter(seq__lt=seq, kind__in=(Kind.OPTIM_STEP, Kind.LOAD_WEIGHTS))
    if not before.exclude(status__in=(Operation.Status.FAILED, Operation.Status.REFUSED)).exists():
        raise UserError(
            "checkpoint_type merged_base needs an adapter that was trained or loaded: this model's"
            " is as it was created.",
            field="checkpoint_type",
        )


def read_precision(fields: Fields, kind: str) -> str:
    precision = fields.text("export_precision", "source")
    if precision not in PRECISIONS:
        raise UserError(
            f"export_precision is {precision[:40]!r}: send one of {', '.join(PRECISIONS)}.",
            field="export_precision",
        )
    offered = ("source", "bf16") if kind == "merged_base" else ("source",)
    if precision not in offered:
        raise UserError(
            f"export_precision {precision} is not offered here: send {' or '.join(offered)}.",
            field="export_precision",
        )
    return precision


def load_state(*, actor: Actor, job: TrainerJob, fields: Fields) -> Operation:
    run, seq = find_model(job, fields.text("model_id")), read_seq(fields)
    with refusing(run, seq, Kind.LOAD_WEIGHTS):
        check_trains(run)
        path = fields.text("path")
        checkpoint = find_state(actor, job, run, path)
        payload = plan_load(run, checkpoint, optimizer=fields.flag("optimizer", False))
        return submit_json(run, seq, Kind.LOAD_WEIGHTS, {**payload, "answer": {"path": path}})


def find_state(actor: Actor, job: TrainerJob, run: Run, path: str) -> Checkpoint:
    """Of this model, else of another model of its job, or of a job that is named."""
    if path.startswith(CROSS_JOB):
        return find_of_other_job(actor, path)
    mine = list_states(job).filter(name=path)
    found = mine.filter(run=run).first() or mine.order_by("-created_at").first()
    if found is None:
        raise NotFound(f"The job {job.job_id} has no training state {path[:200]}.")
    return found


def find_of_other_job(actor: Actor, path: str) -> Checkpoint:
    job_id, _, name = path.removeprefix(CROSS_JOB).partition("/")
    other = TrainerJob.objects.in_project(actor).filter(job_id=job_id).first()
    if other is None:
        raise NotFound(f"There is no trainer job {job_id[:100]}.")
    found = list_states(other).filter(name=name).order_by("-created_at").first()
    if found is None:
        raise NotFound(f"The job {other.job_id} has no training state {name[:200]}.")
    return found


def list_states(job: TrainerJob) -> CheckpointQuerySet:
    return list_job_checkpoints(job).filter(kind=Checkpoint.Kind.TRAINING)


def list_names(job: TrainerJob) -> list[str]:
    return sorted(set(list_states(job).values_list("name", flat=True)))


def load_adapter(*, actor: Actor, job: TrainerJob, fields: Fields) -> Operation:
    """A model of the account that is an adapter, or a snapshot of this job by its name."""
    run, seq = find_model(job, fields.text("model_id")), read_seq(fields)
    with refusing(run, seq, Kind.LOAD_WEIGHTS):
        check_trains(run)
        path = fields.text("adapter_path")
        if run.is_full:
            raise UserError("This model trains all weights: it has no adapter to load one into.")
        promoted = find_promoted(actor, path)
        found = promoted.checkpoint if promoted else find_snapshot(actor, job, path)
        check_same_model(found, run.base_model)
        payload = {"checkpoint": found.pk, "optimizer": False, "is_adapter": True}
        answer = {"adapter_path": path}
        return submit_json(run, seq, Kind.LOAD_WEIGHTS, {**payload, "answer": answer})


def find_snapshot(actor: Actor, job: TrainerJob, path: str) -> Checkpoint:
    if path.startswith(CROSS_JOB):
        return find_of_other_job(actor, path)
    if "/" in path:
        raise NotFound(
            f"There is no adapter {path[:200]}: it is a promoted model of this account, or the name"
            " of a snapshot of this job."
        )
    return find_job_checkpoint(job, path)


def read_seq(fields: Fields) -> int:
    return fields.whole("seq_id", least=1, most=MAX_SEQ)
