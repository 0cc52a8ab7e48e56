"""What every kind of request comes to: payloads of sampling calls, and answers made of results."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from webapp.deployments.pieces import Piece
from webapp.deployments.streams import Ended

Chunk = Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class Result:
    """One call of a request, ended well."""

    ended: Ended
    num_concurrent: int  # requests that were followed when this one came

    @property
    def sequences(self) -> Sequence[Mapping[str, Any]]:
        sequences: Sequence[Mapping[str, Any]] = self.ended.result["sequences"]
        return sequences

    @property
    def num_prompt_tokens(self) -> int:
        return int(self.ended.result["prompt_tokens"])

    @property
    def num_cached_tokens(self) -> int:
        return int(self.ended.result.get("cached_tokens", 0))

    @property
    def num_sampled_tokens(self) -> int:
        return sum(len(each["tokens"]) for each in self.sequences)


class Form(Protocol):
    """A request of one kind. `place`s count its calls, one for each prompt."""

    model: str
    purpose: str
    is_streamed: bool
    payloads: Sequence[Mapping[str, Any]]

    def describe(self, results: Sequence[Result]) -> Mapping[str, Any]:
        """The whole answer."""

    def begin(self) -> Iterable[Chunk]:
        """What a stream says first."""

    def tell(self, place: int, piece: Piece) -> Iterable[Chunk]: ...

    def end(self, place: int, result: Result) -> Iterable[Chunk]:
        """After its last piece."""

    def close(self, results: Sequence[Result]) -> Iterable[Chunk]:
        """What a stream says last."""


def describe_usage(results: Sequence[Result]) -> dict[str, Any]:
    """A prompt counts once, however many samples were drawn from it."""
    prompt = sum(each.num_prompt_tokens for each in results)
    sampled = sum(each.num_sampled_tokens for each in results)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": sampled,
        "total_tokens": prompt + sampled,
        "prompt_tokens_details": {"cached_tokens": sum(each.num_cached_tokens for each in results)},
    }


@dataclass(slots=True)
class Offsets:
    """Where in its text each sample's next token begins."""

    by_index: dict[int, int] = field(default_factory=dict)

    def advance(self, index: int, texts: Iterable[str]) -> list[int]:
        offsets, at = [], self.by_index.get(index, 0)
        for text in texts:
            offsets.append(at)
            at += len(text)
        self.by_index[index] = at
        return offsets
