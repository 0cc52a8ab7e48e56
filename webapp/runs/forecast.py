"""What a run would do and how long it would take, said before it is launched."""

from dataclasses import dataclass
from typing import Any

from webapp.datasets.models import DatasetVersion
from webapp.fleet.models import BaseModel
from webapp.runs.estimates import Estimate, estimate_seconds
from webapp.runs.room import Need, find_work, predict_need
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
    *,
    version: DatasetVersion | None,
    base_model: BaseModel,
    config: dict[str, Any],
    recipe: str = "sft",
) -> Forecast:
    """Rows are counted before any is dropped for its length; a config that is wrong raises."""
    read = read_recipe(config, recipe)
    listed = version.num_rows if version is not None else 0
    num_rows = max(1, round(listed * (1 - read.held_out_share)))
    num_steps = read.count_steps(num_rows)
    work = find_work(version, base_model, read)
    return Forecast(
        num_rows=num_rows,
        num_steps=num_steps,
        num_tokens=work.tokens * num_steps,
        estimate=estimate_seconds(
            base_model=base_model,
            num_tokens_per_step=work.tokens,
            steps=num_steps,
            is_full=read.is_full,
            passes=work.passes,
        ),
        need=predict_need(version=version, base_model=base_model, recipe=read),
    )
