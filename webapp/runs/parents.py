"""The checkpoint that a run begins from. Its app lies above this one, so it is found by name."""

from typing import Any

from django.apps import apps

from webapp.accounts.models import Actor
from webapp.core.errors import UserError


def find_parent(actor: Actor, checkpoint_id: str) -> Any | None:
    """None where no id was given; an id that may not be seen is the caller's mistake."""
    if not checkpoint_id:
        return None
    rows = apps.get_model("checkpoints", "Checkpoint").objects.visible_to(actor)
    found = rows.select_related("base_model", "run").filter(pk=checkpoint_id, deleted_at=None)
    parent = found.first()
    if parent is None:
        raise UserError(f"There is no checkpoint {checkpoint_id}.", field="parent")
    return parent
