"""The prompts of a run that named none: held-out rows, so what is shown was never learned."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from django.conf import settings

from training.data.batches import split_held_out
from training.data.rows import Row
from training.data.validate import read_normalised
from training.recipes.sft_config import SftConfig
from webapp.runs.models import Run

NUM_PROMPTS = 4
ROWS_LOOKED_AT = 2_000


def pin_prompts(run: Run, config: SftConfig) -> SftConfig:
    """Chosen once and kept in the run's config: a restart asks the same ones."""
    if config.sampling.prompts or not config.sampling.every or run.dataset_version is None:
        return config
    rows = list(
        islice(
            read_normalised(Path(settings.HONE_HOME) / run.dataset_version.rows_path),
            ROWS_LOOKED_AT,
        )
    )
    _, held_out = split_held_out(rows, share=config.held_out_share, seed=config.seed)
    prompts = choose_prompts(held_out or rows)
    run.config = {**run.config, "sampling": {**run.config.get("sampling", {}), "prompts": prompts}}
    run.save(update_fields=["config"])
    pinned = tuple(tuple(prompt) for prompt in prompts)
    return replace(config, sampling=replace(config.sampling, prompts=pinned))


def choose_prompts(rows: list[Row]) -> list[list[dict[str, Any]]]:
    """What stands before the last answer, of the first rows that have one."""
    answered = (row.messages for row in rows if row.messages[-1]["role"] == "assistant")
    questions = ([dict(message) for message in messages[:-1]] for messages in answered)
    return list(islice((question for question in questions if question), NUM_PROMPTS))
