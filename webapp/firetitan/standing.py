"""Whether a trainer job can train now, and why not: workers come and go while it waits."""

from dataclasses import dataclass

from training.errors import InvalidInput
from webapp.core.errors import NotFound
from webapp.firetitan.models import TrainerJob
from webapp.firetitan.names import find_base_model
from webapp.fleet.capacity import read_capacity
from webapp.fleet.models import BaseModel
from webapp.runs.room import check_spec

State = TrainerJob.State

REFERENCE_RANK = 1  # frozen weights take what the base model takes; an adapter of one adds nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """`reason`: a sentence where the state is another than running."""

    state: TrainerJob.State
    reason: str = ""


def assess(job: TrainerJob) -> Standing:
    """Of a job that is open: what it is now."""
    if job.base_model is None:
        return Standing(state=State.FAILED, reason=explain_missing(job.asked_model))
    if problem := find_misfit(job, job.base_model):
        # Its worker may only be starting again, where a program has trained on it already.
        has_begun = job.sessions.exists()
        return Standing(state=State.PENDING if has_begun else State.FAILED, reason=problem)
    if waits := read_capacity().training:
        return Standing(state=State.PENDING, reason=f"{waits[0].upper()}{waits[1:]}.")
    return Standing(state=State.RUNNING)


def explain_missing(asked_model: str) -> str:
    try:
        find_base_model(asked_model)
    except NotFound as error:
        return error.message
    return f"The base model {asked_model} was not here when this job was made: resume it."


def find_misfit(job: TrainerJob, base_model: BaseModel) -> str:
    """Empty: some worker has room for such a run, or none is alive to say."""
    rank = REFERENCE_RANK if job.forward_only else job.lora_rank
    try:
        check_spec(base_model, {"rank": rank})
    except InvalidInput as error:
        return f"{str(error)[0].upper()}{str(error)[1:]}."
    return ""
