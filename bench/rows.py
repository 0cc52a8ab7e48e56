"""The rows of the table: what was measured of two sides, and the ratio that we want of them."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]

COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}


def make_row(
    name: str,
    ours: float,
    theirs: float,
    *,
    unit: str,
    ratio: float | None = None,
    target: float | None = None,
    sense: str = ">=",
) -> Row:
    """The ratio is ours by theirs where it is not given. A row without a target only tells."""
    ratio = ours / theirs if ratio is None else ratio
    return {
        "name": name,
        "ours": round(ours, 1),
        "theirs": round(theirs, 1),
        "unit": unit,
        "ratio": round(ratio, 3),
        "target": target,
        "sense": sense,
        "met": target is None or COMPARISONS[sense](ratio, target),
        "command": f"python -m bench {name.split(maxsplit=1)[0]}",
    }


def limit_row(name: str, measured: float, limit: float, *, unit: str) -> Row:
    """What is to stay below a limit: a ratio of 1 is at it."""
    return make_row(name, measured, limit, unit=f"{unit} (limit)", target=1.0, sense="<=")


def describe_rows(rows: Sequence[Row]) -> list[str]:
    """Lines of a table."""
    return [f"{'ratio':>7}  {'target':>8} {'ours':>9} {'theirs':>9}  unit", *map(_describe, rows)]


def _describe(row: Row) -> str:
    target = "" if row["target"] is None else f"{row['sense']} {row['target']:.2f}"
    mark = "" if row["met"] else "   target missed"
    numbers = f"{row['ratio']:7.2f}  {target:>8} {row['ours']:9.1f} {row['theirs']:9.1f}"
    return f"{numbers}  {row['unit']}  {row['name']}{mark}"


def tabulate_rows(rows: Sequence[Row]) -> list[str]:
    """Lines of Markdown, ratios first."""
    head = ["| ratio | wanted | | Hone | the other |", "|---:|---:|---|---:|---:|"]
    return [*head, *map(_tabulate, rows)]


def _tabulate(row: Row) -> str:
    wanted = "" if row["target"] is None else f"{row['sense']} {row['target']:g}"
    ours, theirs = (f"{row[side]:,g} {row['unit']}" for side in ("ours", "theirs"))
    return f"| {row['ratio']:.2f} | {wanted} | {row['name']} | {ours} | {theirs} |"
