"""Who may teach a run: checkpoints of its project, and base models."""

from typing import Any

from django.apps import apps

from webapp.accounts.models import Actor, Project
from webapp.core.errors import UserError
from webapp.fleet.models import BaseModel

MOST_OFFERED = 200


def check_teacher(project: Project, name: Any) -> None:
    """Now, and not when a worker begins. Empty: what the run begins with."""
    if not name or BaseModel.objects.filter(names__name=name).exists():
        return
    if find_checkpoint(project, str(name)) is None:
        raise UserError(
            f"There is no teacher {name!r:.80}: name a checkpoint of this project by its id or"
            " tinker:// path, or a base model.",
            field="teacher",
        )


def check_reward_models(project: Project, graders: Any) -> None:
    """As teachers are. One that a run of the same group is still to make is named by that run."""
    for name in filter(None, (each.get("checkpoint") for each in graders or ())):
        if not name.startswith("run:") and find_checkpoint(project, name) is None:
            raise UserError(
                f"There is no reward model {name!r:.80}: name a checkpoint of this project by its"
                " id or tinker:// path.",
                field="graders",
            )


def find_checkpoint(project: Project, name: str) -> Any | None:
    """Its app lies above this one, so it is found by name."""
    rows = apps.get_model("checkpoints", "Checkpoint").objects.loadable()
    return rows.filter(project=project).find_named(name)


def name_for_program(name: str) -> str:
    """As the SDK's create_sampling_client takes it; empty where none is named."""
    if not name:
        return ""
    rows = apps.get_model("checkpoints", "Checkpoint").objects.filter(pk=name)
    checkpoint = rows.select_related("run").first()
    path = checkpoint.tinker_path if checkpoint is not None else name
    return f"model_path={path!r}" if path.startswith("tinker://") else f"base_model={name!r}"


def offer_teachers(actor: Actor, *, empty: str) -> list[tuple[str, str]]:
    """Choices of a form, the newest checkpoints first; `empty` says what no teacher means."""
    rows = apps.get_model("checkpoints", "Checkpoint").objects.in_project(actor).loadable()
    kept = rows.filter(is_ephemeral=False).select_related("run").order_by("-created_at")
    checkpoints = [(row.pk, f"{row.run.name}: {row.name}") for row in kept[:MOST_OFFERED]]
    models = BaseModel.objects.prefetch_related("names").order_by("added_at")
    named = [(model.name, model.name) for model in models if model.name]
    first = [("", empty)] if empty else []
    return [*first, *named, *checkpoints]
