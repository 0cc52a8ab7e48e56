"""Reinforcement learning from human feedback: three runs, each of which goes on with the last."""

from collections.abc import Mapping
from typing import Any

from django.db import transaction

from training.recipes.config import OF_ADAPTERS
from webapp.accounts.models import Actor
from webapp.core.errors import UserError
from webapp.datasets.models import DatasetVersion
from webapp.fleet.models import BaseModel
from webapp.runs.chains import name_judge
from webapp.runs.methods import METHODS
from webapp.runs.models import Run, RunGroup
from webapp.runs.services import LONGEST_NAME, create_run

STAGES = ("sft", "reward_model", "rl")
PREFERENCE = "preference"  # the grader that is a reward model

Stage = Mapping[str, Any]  # dataset_version, config


def create_rlhf(
    *, actor: Actor, origin: str, name: str, base_model: BaseModel, stages: Mapping[str, Stage]
) -> RunGroup:
    """All three runs or none. The policy begins with what the first stage learned, and its rewards
    are the preferences of the second. A field of an error has its stage's name before a dot."""
    title = name.strip() or f"RLHF on {base_model.short_name}"
    with transaction.atomic():
        group = RunGroup.objects.create(
            project=actor.project,
            name=title[:LONGEST_NAME],
            kind=RunGroup.Kind.RLHF,
            spec={"stages": {recipe: describe(stages[recipe]) for recipe in STAGES}},
            created_by=actor.user,
        )
        before: Run | None = None
        for recipe in STAGES:
            before = create_stage(actor, origin, group, base_model, recipe, stages[recipe], before)
    return group


def describe(stage: Stage) -> dict[str, Any]:
    version: DatasetVersion | None = stage["dataset_version"]
    return {"dataset_version": version and version.pk, "config": dict(stage["config"])}


def create_stage(
    actor: Actor,
    origin: str,
    group: RunGroup,
    base_model: BaseModel,
    recipe: str,
    stage: Stage,
    before: Run | None,
) -> Run:
    config = dict(stage["config"])
    if recipe == "rl" and before is not None and before.after is not None:
        config = follow_policy(config, policy=before.after, judge=before)
    try:
        return create_run(
            actor=actor,
            origin=origin,
            name=f"{group.name}: {METHODS[recipe].label}"[:LONGEST_NAME],
            base_model=base_model,
            dataset_version=stage["dataset_version"],
            config=config,
            recipe=recipe,
            after=before,
            group=group,
        )
    except UserError as error:
        label = METHODS[recipe].label
        raise UserError(f"{label}: {error.message}", field=f"{recipe}.{error.field}") from None


def follow_policy(config: Mapping[str, Any], *, policy: Run, judge: Run) -> dict[str, Any]:
    """The policy keeps the shape that it has from the first stage; other rewards may stand beside
    the preferences."""
    shape = {key: policy.config[key] for key in ("rank", *OF_ADAPTERS) if key in policy.config}
    others = config.get("graders") or []
    if not isinstance(others, list | tuple):
        raise UserError("graders is not a list.", field="rl.graders")
    preference = {"name": PREFERENCE, "checkpoint": name_judge(judge)}
    return {**config, **shape, "graders": [*others, preference]}
