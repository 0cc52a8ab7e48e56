"""The prompts of a run that named none: held-out rows, so what is shown was never learned."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from django.conf import settings

from training.data.rows import Row
from training.data.validate import read_normalised
from training.recipes.config import RecipeConfig
from webapp.runs.models import Run

NUM_PROMPTS = 4
ROWS_LOOKED_AT = 2_000

ConfigT = TypeVar("ConfigT", bound=RecipeConfig)
Prompt = list[dict[str, Any]]


def choose_prompts(rows: Sequence[Row]) -> list[Prompt]:
    """What stands before the last answer, or the whole of a row that ends with a question."""
    questions = (find_question(row) for row in rows)
    return list(islice((question for question in questions if question), NUM_PROMPTS))


def find_question(row: Row) -> Prompt:
    messages = [dict(message) for message in row.messages]
    is_answered = bool(messages) and messages[-1]["role"] == "assistant"
    return messages[:-1] if is_answered else messages


def pin_prompts(
    run: Run, config: ConfigT, choose: Callable[[Sequence[Row]], list[Prompt]] = choose_prompts
) -> ConfigT:
    """Chosen once and kept in the run's config: a restart asks the same ones."""
    if config.sampling.prompts or not config.sampling.every or run.dataset_version is None:
        return config
    rows = list(
        islice(
            read_normalised(Path(settings.HONE_HOME) / run.dataset_version.rows_path),
            ROWS_LOOKED_AT,
        )
    )
    _, held_out = config.split(rows)
    prompts = choose(held_out or rows)
    run.config = {**run.config, "sampling": {**run.config.get("sampling", {}), "prompts": prompts}}
    run.save(update_fields=["config"])
    pinned = tuple(tuple(prompt) for prompt in prompts)
    return replace(config, sampling=replace(config.sampling, prompts=pinned))
