"""What a save writes: weights for samplers, whole or as a difference, and files to leave with."""

import logging
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from django.template.loader import render_to_string

from training.engine.core import Engine
from training.errors import InvalidInput
from training.types import SavedWeights
from webapp.checkpoints.chains import find_previous
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import find_folder
from webapp.runs.models import Run

logger = logging.getLogger(__name__)


def choose_previous(run: Run, payload: Mapping[str, Any]) -> Checkpoint | None:
    """What a full-parameter run's sampler weights are saved as a difference to, if to anything."""
    kind = payload.get("checkpoint_type")
    if kind not in (None, "base", "delta"):
        raise InvalidInput(f"checkpoint_type is {kind!r}: choose base or delta, or leave it out")
    return find_previous(run) if run.is_full and kind != "base" else None


def save_sampler(
    engine: Engine, run: Run, folder: Path, previous: Checkpoint | None
) -> SavedWeights:
    """Where what a difference would build on is damaged, all weights are saved instead."""
    save = partial(engine.save_weights, run.pk, folder, optimizer=False)
    if previous is not None:
        try:
            return save(previous=find_folder(previous))
        except InvalidInput as error:
            logger.warning("no delta of %s: %s", run.pk, error)
    return save()


def export_weights(
    engine: Engine, run: Run, folder: Path, payload: Mapping[str, Any]
) -> SavedWeights:
    shares_head = engine.shares_trained_head(run.pk)
    card = {
        "run": run,
        "name": payload["name"],
        "shares_head": shares_head,
        "trains_embedding": run.lora.get("train_embed", False),
        "joins_experts": engine.joins_experts(run.pk),
    }
    return engine.export_weights(
        run.pk,
        folder,
        base_name=run.model_name,
        card=render_to_string("checkpoints/external_card.md", card),
        recipients=payload.get("recipients", ()),
    )


def make_folder_name(name: str) -> str:
    """Clients name checkpoints as they like; the seq behind it keeps folders apart."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:60] or "checkpoint"
