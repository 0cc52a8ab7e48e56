"""Checks of single settings, each naming the field, what it is and what it may be."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from training.errors import InvalidInput

Check = Callable[[str, Any], Any]


def whole(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> int:
        # JSON knows one kind of number: 40.0 is a whole one.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidInput(f"{name} is {value!r:.60}: give a whole number from {low} to {high}")
        return value

    return check


def real(low: float, high: float, *, above: bool = False) -> Check:
    """From `low` to `high`, or above `low`."""
    between = f"above {low:g} and up to {high:g}" if above else f"from {low:g} to {high:g}"

    def check(name: str, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise InvalidInput(f"{name} is {value!r:.60}: give a number {between}")
        if above and value == low:
            raise InvalidInput(f"{name} is {value!r:.60}: give a number {between}")
        return float(value)

    return check


def one_of(choices: Sequence[str]) -> Check:
    def check(name: str, value: Any) -> str:
        if value not in choices:
            raise InvalidInput(f"{name} is {value!r:.60}: give one of {', '.join(choices)}")
        return str(value)

    return check


def yes_or_no(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} is {value!r:.60}: give true or false")
    return value


def optional(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def check_fields(
    data: Any, checks: Mapping[str, Check], *, name: str, within: str = ""
) -> dict[str, Any]:
    """The checked values of the fields that are there; a field nobody knows is refused."""
    if not isinstance(data, Mapping):
        raise InvalidInput(f"{name} is not an object with named fields")
    if unknown := sorted(str(key) for key in data.keys() - checks.keys()):
        known = ", ".join(sorted(checks))
        raise InvalidInput(f"{name} has no field {unknown[0]!r}; it has {known}")
    return {key: checks[key](within + key, value) for key, value in data.items()}
