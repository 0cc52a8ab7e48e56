"""Whole numbers in an address, such as an offset or the id that a page has read up to."""

from webapp.core.errors import UserError

MOST_DIGITS = 18  # what fits a database's largest integer


def read_count(text: str, field: str) -> int:
    if not text.isdecimal() or len(text) > MOST_DIGITS:
        raise UserError(f"{field} is {text!r:.40}; send a whole number.", field=field)
    return int(text)
