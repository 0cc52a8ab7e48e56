"""What a program says of a deployment, read from a body that makes one or changes one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from webapp.core.errors import UserError
from webapp.core.fields import Fields

MOST_REPLICAS = 1000  # that a program may name; how many there can be is the supervisor's to say
TRANSITIONS = ("ASYNC", "SYNC")
UNSPECIFIED = "HOT_LOAD_TRANSITION_TYPE_UNSPECIFIED"
PREFIX = "HOT_LOAD_TRANSITION_TYPE_"
# The body's names of what may be changed later, by the mask's.
CHANGEABLE = {
    "description": "description",
    "annotations": "annotations",
    "enable_hot_load": "enableHotLoad",
    "hot_load_trainer_job": "hotLoadTrainerJob",
    "hot_load_transition_type": "hotLoadTransitionType",
    "deployment_shape": "deploymentShape",
    "min_replica_count": "minReplicaCount",
    "max_replica_count": "maxReplicaCount",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRequest:
    """`terms` are columns of DeploymentTerms."""

    base_model: str
    terms: Mapping[str, Any]


def read_creation(fields: Fields) -> DeploymentRequest:
    terms = {name: read_term(name, fields) for name in CHANGEABLE}
    terms["for_training"] = fields.flag("forTraining", False)
    check_counts(terms["min_replica_count"], terms["max_replica_count"])
    return DeploymentRequest(base_model=fields.text("baseModel")[:200], terms=terms)


def read_changes(mask: str, fields: Fields) -> dict[str, Any]:
    """Of a mask, all that it names: what the body does not say of these is emptied. Without one,
    what the body says.
    """
    named = [name.strip() for name in mask.split(",") if name.strip()]
    if not named:
        named = [name for name, key in CHANGEABLE.items() if fields.has(key)]
    by_key = {key: name for name, key in CHANGEABLE.items()}
    chosen = [by_key.get(name, name) for name in named]
    if unknown := set(chosen) - set(CHANGEABLE):
        raise UserError(
            f"updateMask has {min(unknown)[:60]!r}; what can be changed is"
            f" {', '.join(CHANGEABLE)}.",
            field="updateMask",
        )
    return {name: read_term(name, fields) for name in chosen}


def read_term(name: str, fields: Fields) -> Any:
    key = CHANGEABLE[name]
    if name.endswith("_count"):
        return fields.whole(key, 1 if name.startswith("max") else 0, most=MOST_REPLICAS)
    if name == "enable_hot_load":
        return fields.flag(key, False)
    if name == "annotations":
        return fields.document(key)
    if name == "hot_load_transition_type":
        return read_transition(fields.text(key, ""))
    return fields.text(key, "")[:300]


def read_transition(text: str) -> str:
    if text in ("", UNSPECIFIED):
        return ""
    value = text.removeprefix(PREFIX)
    if value not in TRANSITIONS:
        raise UserError(
            f"hotLoadTransitionType is {text[:60]!r}; it is ASYNC, SYNC, or left out.",
            field="hotLoadTransitionType",
        )
    return value


def check_counts(least: int, most: int) -> None:
    if least > most:
        raise UserError(
            f"minReplicaCount is {least} and maxReplicaCount {most}: the first is no larger.",
            field="minReplicaCount",
        )


def count_replicas(least: int, most: int) -> int:
    """Nothing here adds replicas by itself: one where any are wanted, more where they must be."""
    return max(least, min(most, 1))
