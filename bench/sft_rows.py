"""The batches of the SFT contest: the demo's function calls on the demo's model, as token ids."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LORA, FULL = "lora", "full"  # what is trained: an adapter, or all weights
RANK = 16
LEARNING_RATE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class SftRow:
    """All tokens of a conversation; only those in `learned` carry loss."""

    tokens: Sequence[int]
    learned: Sequence[bool]


def read_batches(file: Path) -> list[list[SftRow]]:
    return [
        [SftRow(tokens=tokens, learned=learned) for tokens, learned in batch]
        for batch in json.loads(file.read_text())
    ]


def repeat(batches: Sequence[list[SftRow]]) -> Iterator[list[SftRow]]:
    while True:
        yield from batches


def count_tokens(batch: Sequence[SftRow]) -> int:
    """As the contest counts them: of the rows, without anybody's padding."""
    return sum(len(row.tokens) for row in batch)
