"""Which runs a sweep is: every combination of a grid's values, or a list of combinations."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from webapp.core.bodies import parse_json
from webapp.core.errors import UserError

MOST_RUNS = 64
MOST_VALUES = 32  # of one setting
NOT_SWEPT = ("sampling", "eval_suite", "early_stop", "graders")  # objects, not one number or word

Settings = Mapping[str, Any]


def list_points(
    grid: Mapping[str, Sequence[Any]] | None, settings: Sequence[Settings] | None
) -> list[Settings]:
    if bool(grid) == bool(settings):
        raise UserError(
            "Give either grid, with a list of values for each setting, or settings, a list of"
            " combinations.",
            field="grid",
        )
    points = cross(grid) if grid else list(settings or ())
    if len(points) > MOST_RUNS:
        raise UserError(
            f"That is {len(points)} runs: a sweep has at most {MOST_RUNS}.", field="grid"
        )
    for point in points:
        check_point(point)
    written = [json.dumps(point, sort_keys=True) for point in points]
    if len(set(written)) < len(written):
        raise UserError("Two runs of the sweep would have the same settings.", field="grid")
    return points


def cross(grid: Mapping[str, Sequence[Any]]) -> list[Settings]:
    for key, values in grid.items():
        if not isinstance(values, list | tuple) or not 1 <= len(values) <= MOST_VALUES:
            raise UserError(
                f"{key} is to vary: give it a list of 1 to {MOST_VALUES} values.", field="grid"
            )
    # Before they are made: ten settings of ten values would be ten thousand million points.
    count = math.prod(len(values) for values in grid.values())
    if count > MOST_RUNS:
        raise UserError(f"That is {count} runs: a sweep has at most {MOST_RUNS}.", field="grid")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def check_point(point: Settings) -> None:
    if not isinstance(point, Mapping) or not point:
        raise UserError("Each combination names at least one setting.", field="settings")
    for key, value in point.items():
        if key in NOT_SWEPT or isinstance(value, dict | list):
            raise UserError(f"{key} cannot be swept: it is not one value.", field="grid")


def list_varied(points: Sequence[Settings]) -> list[str]:
    """The settings that differ between runs, in the order they were given."""
    return list(dict.fromkeys(key for point in points for key in point))


def describe_point(point: Settings) -> str:
    return ", ".join(f"{key} {write_value(value)}" for key, value in point.items())


def write_value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse_grid(text: str) -> dict[str, list[Any]]:
    """One setting a line: `learning_rate: 1e-4, 3e-4`. Values are JSON, or words."""
    grid: dict[str, list[Any]] = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        key, separator, values = line.partition(":")
        if not separator:
            raise UserError(
                f"{line[:60]!r} is not a setting with values: write learning_rate: 1e-4, 3e-4.",
                field="sweep",
            )
        if key.strip() in grid:
            raise UserError(f"{key.strip()} is given twice.", field="sweep")
        grid[key.strip()] = [read_value(value) for value in values.split(",") if value.strip()]
    return grid


def read_value(text: str) -> Any:
    try:
        return parse_json(text.encode())
    except UserError:
        return text.strip()
