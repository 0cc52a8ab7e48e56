"""The fields of a JSON body, each read as what it has to be, or refused by name."""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from webapp.core.bodies import parse_json
from webapp.core.errors import UserError

LARGEST = 2**63 - 1
DEEPEST = 32  # objects and lists in one another, of what is kept and shown later
LARGEST_FLOAT = sys.float_info.max


class Fields:
    """An object of the request. Unknown fields are left alone: newer clients send more."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self.values = values
        self.where = where

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def text(self, name: str, default: str | None = None) -> str:
        value = self._read(name, default)
        if not isinstance(value, str):
            self._refuse(name, "a string")
        return value

    def whole(
        self, name: str, default: int | None = None, *, least: int = 0, most: int = LARGEST
    ) -> int:
        value = self._read(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            bounds = f" from {least}" + (f" to {most}" if most != LARGEST else " upward")
            self._refuse(name, f"a whole number{bounds}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._read(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._refuse(name, "a number")
        if not abs(value) < LARGEST_FLOAT:  # neither infinite, nor NaN, nor a whole number beyond
            self._refuse(name, "a finite number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._read(name, default)
        if not isinstance(value, bool):
            self._refuse(name, "true or false")
        return value

    def inner(self, name: str) -> "Fields":
        """An object inside; an empty one where it is missing."""
        value = self._read(name, {})
        if not isinstance(value, dict):
            self._refuse(name, "an object")
        return Fields(value, f"{self.where}{name}.")

    def document(self, name: str) -> dict[str, Any]:
        """An object of the caller's own that is kept as it is: it has to come back as JSON."""
        values = dict(self.inner(name).values)
        level: list[Any] = [values]
        for _ in range(DEEPEST):
            level = [inner for item in level for inner in _open(item)]
            if any(isinstance(item, float) and not math.isfinite(item) for item in level):
                raise UserError(f"{self.where}{name} has a number that is not finite.", field=name)
        if level:
            raise UserError(f"{self.where}{name} is more than {DEEPEST} levels deep.", field=name)
        return values

    def list_of(self, name: str, kind: type) -> list[Any]:
        value = self._read(name, [])
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            self._refuse(name, f"a list of {kind.__name__}")
        return value

    def _read(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            raise UserError(f"{self.where}{name} is required.", field=self.where + name)
        return default

    def _refuse(self, name: str, wanted: str) -> NoReturn:
        value = json.dumps(self.values.get(name))[:100]
        raise UserError(f"{self.where}{name} is {value}; send {wanted}.", field=self.where + name)


def _open(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return list(item.values())
    return item if isinstance(item, list) else []


def read_fields(body: bytes) -> Fields:
    """No body is an empty object: some calls of the SDK have none."""
    if not body:
        return Fields({})
    values = parse_json(body, may_have_nan=True)  # refused by the name of its field
    if not isinstance(values, dict):
        raise UserError("The body is not a JSON object.")
    return Fields(values)
