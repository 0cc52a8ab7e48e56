"""Rows -> what a model is asked and what it should answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from training.data.rows import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """`messages` end before the answer; `target` is what graders compare it with."""

    number: int
    messages: Sequence[Mapping[str, Any]]
    target: str


def to_prompt(row: Row) -> Prompt:
    """Asks for the last assistant turn. A column `target` says more than that turn's own text."""
    place = max(
        index for index, message in enumerate(row.messages) if message["role"] == "assistant"
    )
    target = row.metadata.get("target")
    if target is None:
        target = row.messages[place]["content"]
    return Prompt(
        number=row.number,
        messages=row.messages[:place],
        target=target if isinstance(target, str) else orjson.dumps(target).decode(),
    )
