"""What a run takes of a worker's memory, and whether it fits, said before it begins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from training.errors import InvalidInput
from training.memory import Fit, Footprint, count_tokens, fit_model
from training.recipes.config import RecipeConfig, Work
from training.shapes import ModelShape
from training.types import Datum, LoraSpec
from webapp.core.errors import UserError
from webapp.datasets.models import DatasetVersion, Preview
from webapp.fleet.models import BaseModel, Worker
from webapp.fleet.workers import find_alive
from webapp.runs.estimates import estimate_tokens
from webapp.runs.models import Run

INFINITE = 2**31
ALWAYS_FITS = 1024  # tokens of a datum: fewer are not looked at before the worker does


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The gpu worker with the most memory, and how it would load the model."""

    worker: str
    fit: Fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Of a run's largest pass. `problem`: why it does not fit, and what to change; or empty."""

    worker: str
    room_bytes: int
    num_tokens: int
    footprint: Footprint
    problem: str
    field: str = ""  # of the config: what to change

    @property
    def share(self) -> float:
        return self.footprint.total / self.room_bytes


def find_place(base_model: BaseModel, spec: LoraSpec) -> Place | None:
    """None: no worker is alive that says its memory, or the model's config.json does not help."""
    offers = [
        (row.name, row.holds["memory"])
        for row in find_alive(Worker.objects.filter(kind=Worker.Kind.GPU))
        if row.holds.get("memory", {}).get("room")
    ]
    if not offers:
        return None
    # Ranks offer one device's room each, and need less of it.
    worker, memory = max(offers, key=lambda offer: offer[1]["room"] * find_pieces(offer[1]))
    try:
        shape = ModelShape.read(Path(base_model.path))
    except InvalidInput:
        return None
    most, room = memory["token_budget"], memory["room"]
    fit = fit_model(
        shape,
        memory["device"],
        room,
        most,
        is_full=spec.is_full,
        num_pieces=find_pieces(memory),
    )
    return Place(worker=worker, fit=fit)


def find_pieces(memory: Mapping[str, int]) -> int:
    return memory.get("num_pieces", 1)


def predict_need(
    *, version: DatasetVersion | None, base_model: BaseModel, recipe: RecipeConfig
) -> Need | None:
    """Of the longest row that a preview has seen, or as many rows as go into one pass."""
    place = find_place(base_model, recipe.lora)
    if place is None:
        return None
    work = find_work(version, base_model, recipe)
    step = min(work.tokens, place.fit.token_budget)
    num_tokens = max(1, round(max(work.longest, step)))
    problem, field = _find_problem(place, recipe.lora, round(work.longest))
    return Need(
        worker=place.worker,
        room_bytes=place.fit.room.num_bytes,
        num_tokens=num_tokens,
        footprint=place.fit.room.plan(recipe.lora).predict(num_tokens),
        problem=problem,
        field=field,
    )


def find_work(version: DatasetVersion | None, base_model: BaseModel, recipe: RecipeConfig) -> Work:
    """What a step takes of rows that are as long as those of the version."""
    mean = longest = 0.0
    if version is not None:
        limit = recipe.max_length or base_model.context_tokens or INFINITE
        mean = min(estimate_tokens(version, base_model), limit)
        longest = min(max(_find_longest(version, base_model), mean), limit)
    return recipe.estimate_work(row_tokens=mean, longest_row=longest)


def _find_longest(version: DatasetVersion, base_model: BaseModel) -> int:
    preview = Preview.objects.filter(version=version, base_model=base_model).first()
    longest: int = (preview.stats.get("longest_tokens") if preview else None) or 0
    return longest


def _find_problem(place: Place, spec: LoraSpec, longest: int) -> tuple[str, str]:
    room = place.fit.room
    try:
        room.check_run(spec)
    except InvalidInput as error:
        return str(error), "rank"
    if longest > count_tokens(room, spec):
        cure = "set the longest row to {most} tokens at most"
        return room.describe_excess(spec, "the longest row", longest, cure), "max_length"
    return "", ""


def predict_bytes(
    version: DatasetVersion | None, base_model: BaseModel, recipe: RecipeConfig
) -> int | None:
    """A run that no worker can hold is refused: it is not begun."""
    need = predict_need(version=version, base_model=base_model, recipe=recipe)
    if need is not None and need.problem:
        problem = need.problem[0].upper() + need.problem[1:]
        raise UserError(f"{problem}.", field=need.field)
    return need.footprint.total if need is not None else None


def check_spec(base_model: BaseModel, lora: Mapping[str, Any]) -> None:
    """InvalidInput where no worker that is alive has room for such a run. Its rank is in `lora`."""
    spec = make_spec(lora)
    place = find_place(base_model, spec)
    if place is not None:
        place.fit.room.check_run(spec)


def check_data(run: Run, data: Sequence[Datum]) -> None:
    """InvalidInput with the first datum that no worker has room for."""
    if max((len(datum.tokens) for datum in data), default=0) <= ALWAYS_FITS:
        return
    spec = make_spec({**run.lora, "rank": run.rank})
    place = find_place(run.base_model, spec)
    if place is not None:
        place.fit.room.check_data(spec, data)


def make_spec(lora: Mapping[str, Any]) -> LoraSpec:
    known = {field.name for field in fields(LoraSpec)}
    return LoraSpec(**{key: value for key, value in lora.items() if key in known})
