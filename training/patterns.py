"""Patterns that people write: compiled, where that takes little memory and time."""

from math import prod

import regex  # type: ignore[import-untyped]

from training.errors import InvalidInput

LEAST = regex.compile(r"\{(\d{1,9})")
MAX_UNROLLED = 2_000_000  # characters, were every repeat written out as often as it asks at least


def check_compiles(name: str, pattern: str) -> None:
    """Raise InvalidInput. Compiling unrolls repeats: (?:(?:a{1000}){1000}){1000} would take all
    memory there is."""
    if prod(max(1, int(least)) for least in LEAST.findall(pattern)) * len(pattern) > MAX_UNROLLED:
        raise InvalidInput(f"{name} repeats too much: together its {{...}} ask for too many times")
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise InvalidInput(f"{name} is not a regular expression: {error}") from error
    except (RecursionError, OverflowError) as error:
        raise InvalidInput(f"{name} is nested too deeply") from error
