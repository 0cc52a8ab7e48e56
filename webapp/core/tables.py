"""Cells of CSV files that people open in a spreadsheet."""

import re
from typing import Any

FORMULA = re.compile(r"[=+\-@\t\r]")
NUMBER = re.compile(r"[-+]?[\d.,]{1,40}(e[-+]?\d{1,4})?%?", re.IGNORECASE)


def guard_cell(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula begins with an apostrophe instead; a number
    stays as it is.
    """
    if isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value):
        return f"'{value}"
    return value
