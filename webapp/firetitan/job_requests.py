"""What a program asks of a trainer job, read from query and body; what is not followed is told."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from training.types import MAX_RANK
from webapp.core.errors import UserError
from webapp.core.fields import Fields
from webapp.firetitan.names import check_id, read_last

DEFAULT_INACTIVITY = 3600
LONGEST_INACTIVITY = 3 * 3600
DURATION = re.compile(r"(\d{1,9})(\.\d{1,9})?s")
MOST_TOKENS = 2**31 - 1
# All jobs share the gpu workers there are, so there is nothing to choose between.
UNUSED = (
    *("region", "reservationTarget", "purpose", "preemptible", "managedBy", "extraArgs"),
    *("extraValues", "disableInactivityCleanup"),
)
UNUSED_OF_TRAINING = (
    *("customImageTag", "acceleratorType", "acceleratorCount", "region", "extraArgs"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """Checked, but for its base model, which a job may fail for."""

    job_id: str
    asked_model: str
    lora_rank: int
    learning_rate: float
    max_context_length: int | None
    display_name: str
    forward_only: bool
    hot_load_deployment: str
    training_shape: str
    inactivity_seconds: int
    ignored: tuple[str, ...]


def read_request(query: Mapping[str, str], fields: Fields) -> JobRequest:
    """All three paths come here: with a shape, with `skipValidations`, and with neither."""
    if not fields.flag("serviceMode", True):
        raise UserError("Only service-mode trainer jobs are served here: set serviceMode to true.")
    training = fields.inner("trainingConfig")
    deployment = query.get("deploymentId") or fields.text("hotLoadDeploymentId", "")
    inactivity, notes = read_inactivity(fields)
    return JobRequest(
        job_id=check_id(query.get("rlorTrainerJobId", ""), "rlorTrainerJobId"),
        asked_model=training.text("baseModel")[:200],
        lora_rank=training.whole("loraRank", 0, most=MAX_RANK),
        learning_rate=training.number("learningRate", 0.0),
        max_context_length=training.whole("maxContextLength", 0, most=MOST_TOKENS) or None,
        display_name=fields.text("displayName", "")[:200],
        forward_only=fields.flag("forwardOnly", False),
        hot_load_deployment=check_id(read_last(deployment), "deploymentId") if deployment else "",
        training_shape=query.get("trainingShape", "")[:300],
        inactivity_seconds=inactivity,
        ignored=(*list_ignored(fields, training), *notes),
    )


def list_ignored(fields: Fields, training: Fields) -> list[str]:
    """One node and one replica are what there is, so to ask for one is to get it."""
    ignored = [name for name in UNUSED if fields.values.get(name)]
    ignored += [
        f"trainingConfig.{name}" for name in UNUSED_OF_TRAINING if training.values.get(name)
    ]
    counts = ("nodeCount", "trainerReplicaCount")
    return ignored + [name for name in counts if fields.whole(name, 1, most=MOST_TOKENS) > 1]


def read_inactivity(fields: Fields) -> tuple[int, tuple[str, ...]]:
    """In seconds, and what is to be said of it."""
    if not fields.has("inactivityTimeout"):
        return DEFAULT_INACTIVITY, ()
    text = fields.text("inactivityTimeout")
    match = DURATION.fullmatch(text)
    seconds = int(match[1]) if match else 0
    if not seconds:
        raise UserError(
            f"inactivityTimeout is {text[:60]!r}: it is a number of seconds such as 1800s.",
            field="inactivityTimeout",
        )
    if seconds > LONGEST_INACTIVITY:
        return LONGEST_INACTIVITY, (f"inactivityTimeout beyond {LONGEST_INACTIVITY}s",)
    return seconds, ()
