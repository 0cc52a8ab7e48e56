"""Numbers as runs bring them: some are not finite, and some too large to be drawn."""

from math import isfinite

LARGEST_DRAWN = 1e100  # squares and differences of larger ones are infinite soon


def is_drawn(value: float) -> bool:
    """In a curve. What is not stays in tables and CSV files."""
    return isfinite(value) and abs(value) < LARGEST_DRAWN


def keep_finite(value: float) -> float | None:
    """JSON has no other numbers, nor have all databases. None: it is none of those."""
    return value if isfinite(value) else None
