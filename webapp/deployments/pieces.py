"""Parts of an answer on their way from a sampler to whoever watches it being made.

Messages may be lost: each says where it belongs, and the row's result has what did not come.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import orjson

Ranked = Sequence[tuple[int, str, float]]  # token, text, log-probability: the likeliest first


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """More of one sample: its tokens from place `start` on, its text from character `at` on.

    `text` is what a reader sees: without special tokens, and held back while a stop string or a
    character may be unfinished. `texts` spell each token out. Where nobody asked for them there are
    no `logprobs`.
    """

    index: int
    start: int
    at: int
    tokens: Sequence[int]
    logprobs: Sequence[float]
    texts: Sequence[str]
    alternatives: Sequence[Ranked] = field(default_factory=list)  # at each token, if asked for
    text: str = ""

    @property
    def stop(self) -> int:
        return self.start + len(self.tokens)

    @property
    def end(self) -> int:
        return self.at + len(self.text)

    def cut(self, start: int, at: int) -> Self:
        """Without what came before."""
        skipped, read = start - self.start, at - self.at
        return type(self)(
            index=self.index,
            start=start,
            at=at,
            tokens=self.tokens[skipped:],
            logprobs=self.logprobs[skipped:],
            texts=self.texts[skipped:],
            alternatives=self.alternatives[skipped:],
            text=self.text[read:],
        )


def join_pieces(pieces: Sequence[Piece]) -> Piece:
    """Neighbours of one sample, as one."""
    first = pieces[0]
    return Piece(
        index=first.index,
        start=first.start,
        at=first.at,
        tokens=[token for piece in pieces for token in piece.tokens],
        logprobs=[logprob for piece in pieces for logprob in piece.logprobs],
        texts=[text for piece in pieces for text in piece.texts],
        alternatives=[ranked for piece in pieces for ranked in piece.alternatives],
        text="".join(piece.text for piece in pieces),
    )


def write_pieces(pieces: Iterable[tuple[str, Piece]]) -> bytes:
    """One message of many answers' pieces, each with its request id."""
    return orjson.dumps([{"id": request_id, **asdict(piece)} for request_id, piece in pieces])


def read_pieces(message: str) -> list[tuple[str, Piece]]:
    return [(said.pop("id"), Piece(**said)) for said in orjson.loads(message)]


def read_sample(index: int, sequence: Mapping[str, Any]) -> Piece:
    """A sample of a row's result, as the piece that has all of it."""
    return Piece(
        index=index,
        start=0,
        at=0,
        tokens=sequence["tokens"],
        logprobs=sequence["logprobs"],
        texts=sequence["pieces"],
        alternatives=sequence.get("alternatives") or [],
        text=sequence["text"],
    )


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far one sample has been heard. What is waiting has not been taken yet."""

    index: int
    num_tokens: int = 0
    text: str = ""
    waiting: list[Piece] = field(default_factory=list)

    def hear(self, piece: Piece) -> None:
        """After a message was lost nothing fits any more, until the result comes."""
        at = len(self.text)
        if piece.start > self.num_tokens or piece.at > at:
            return
        if piece.stop <= self.num_tokens and piece.end <= at:
            return
        fresh = piece.cut(self.num_tokens, at)
        self.num_tokens, self.text = max(self.num_tokens, piece.stop), self.text + fresh.text
        self.waiting.append(fresh)

    def complete(self, whole: Piece) -> None:
        """What is missing. Text that was told already cannot be taken back."""
        if not whole.text.startswith(self.text):
            whole = replace(whole, at=len(self.text), text="")
        self.hear(whole)

    def take(self) -> Piece | None:
        """Everything that waits, as one: a slow reader gets larger pieces."""
        waiting, self.waiting = self.waiting, []
        return join_pieces(waiting) if waiting else None
