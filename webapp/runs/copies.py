"""A run that only holds copied weights: nothing was trained in it, and nothing can be."""

from typing import Any

from django.db import transaction
from django.utils.timezone import now

from webapp.accounts.models import Actor, Project
from webapp.runs.models import Origin, Run, Session
from webapp.runs.services import LONGEST_NAME, add_log, announce


@transaction.atomic
def record_copy(
    *,
    actor: Actor,
    run_id: str,
    project: Project,
    parent: Any,
    session: Session | None = None,
    model_seq_id: int | None = None,
) -> Run:
    """`parent` is the checkpoint that was copied. A place in a session is taken once."""
    source = parent.run
    run = Run.objects.create(
        pk=run_id,
        project=project,
        created_by=actor.user,
        name=f"Copy of {source.name}"[:LONGEST_NAME],
        origin=Origin.TINKER,
        status=Run.Status.DONE,
        base_model_id=parent.base_model_id,
        asked_model=source.asked_model,
        rank=source.rank,
        lora=source.lora,
        optimizer=source.optimizer,
        notes=source.notes,
        # A client's own words, such as its renderer's name, go with the weights; a recipe does not.
        config={} if source.recipe else source.config,
        parent=parent,
        session=session,
        model_seq_id=model_seq_id,
        step=parent.step,
        started_at=now(),
        ended_at=now(),
    )
    add_log(run, f"Copied from {parent.tinker_path} by {actor.user}.")
    announce(run)
    return run
