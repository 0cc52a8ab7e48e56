"""What a run would do and how long it would take, said before it is launched."""

from dataclasses import dataclass
from typing import Any

from webapp.datasets.models import DatasetVersion
from webapp.fleet.models import BaseModel
from webapp.runs.estimates import Estimate, estimate_seconds, estimate_tokens
from webapp.runs.room import Need, predict_need
from webapp.runs.services import read_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """`estimate` None: nothing is known here of this model's speed yet. `need` None: no worker has
    said how much memory it has."""

    num_rows: int  # trained on
    num_steps: int
    num_tokens: float
    estimate: Estimate | None
    need: Need | None


def forecast_run(
    *, version: DatasetVersion, base_model: BaseModel, config: dict[str, Any]
) -> Forecast:
    """Rows are counted before any is dropped for its length; a config that is wrong raises."""
    recipe = read_recipe(config)
    num_rows = max(1, round(version.num_rows * (1 - recipe.held_out_share)))
    num_steps = recipe.count_steps(num_rows)
    longest = recipe.max_length or base_model.context_tokens
    tokens_a_row = estimate_tokens(version, base_model)
    tokens_a_step = min(tokens_a_row, longest or tokens_a_row) * recipe.batch_size
    return Forecast(
        num_rows=num_rows,
        num_steps=num_steps,
        num_tokens=tokens_a_step * num_steps,
        estimate=estimate_seconds(
            base_model=base_model,
            num_tokens_per_step=tokens_a_step,
            steps=num_steps,
            is_full=recipe.is_full,
        ),
        need=predict_need(version=version, base_model=base_model, recipe=recipe),
    )
