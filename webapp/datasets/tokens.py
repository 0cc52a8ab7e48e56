"""Tokens as a page shows them: special ones apart, white space visible."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# How templates and tokenizers write tokens that no text has: <|im_start|>, <s>, </s>, [INST] ...
SPECIAL = re.compile(r"<\|[^<>|]+\|>|</?[a-z_]{1,16}>|\[/?[A-Z_]{2,24}\]")
MARKS = {"\n": "\u21b5\n", "\t": "\u21e5\t", "\r": "\u240d"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownToken:
    """One token. `kind` is special, blank (a part of the character before it) or text."""

    text: str
    kind: str
    id: int
    weight: int = 0
    logprob: float | None = None
    raw: str = ""  # the text as it is, where the token stands in running text

    @property
    def title(self) -> str:
        if self.logprob is None:
            return f"token {self.id}"
        return f"token {self.id}: p = {math.exp(self.logprob):.3f}, log p = {self.logprob:.4f}"

    @property
    def doubt(self) -> int:
        """0 (sure) to 4 (a long shot), for the shade behind a sampled token."""
        if self.logprob is None:
            return 0
        return sum(self.logprob < edge for edge in (-0.1, -0.7, -1.6, -3.0))


def show_masked(tokens: Iterable[Mapping[str, Any]]) -> list[ShownToken]:
    """A preview's tokens: text, id and weight."""
    return [
        ShownToken(
            text=mark(token["text"]),
            kind=find_kind(token["text"]),
            id=token["id"],
            weight=token["weight"],
        )
        for token in tokens
    ]


def show_sampled(
    pieces: Sequence[str], ids: Sequence[int], logprobs: Sequence[float]
) -> list[ShownToken]:
    """A completion's tokens with what the model thought of them."""
    return [
        ShownToken(text=mark(piece), kind=find_kind(piece), id=token, logprob=logprob, raw=piece)
        for piece, token, logprob in zip(pieces, ids, logprobs, strict=False)
    ]


def find_kind(text: str) -> str:
    if not text:
        return "blank"
    return "special" if SPECIAL.fullmatch(text) else "text"


def mark(text: str) -> str:
    if not text:
        return "\u00b7"
    return "".join(MARKS.get(character, character) for character in text)
