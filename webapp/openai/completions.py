"""POST /v1/completions: text or token ids go on."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from webapp.core.errors import UserError
from webapp.core.fields import Fields
from webapp.deployments.models import SamplingCall
from webapp.deployments.pieces import Piece, Ranked, read_sample
from webapp.openai import parameters
from webapp.openai.forms import Chunk, Offsets, Result, describe_usage

DEFAULT_TOKENS = 16  # OpenAI's
UNSUPPORTED: dict[str, tuple[Any, ...]] = {"suffix": ("",)}


@dataclass(slots=True, kw_only=True)
class Completions:
    """One request: each of its prompts is a call of its own."""

    id: str
    model: str
    payloads: Sequence[Mapping[str, Any]]
    num_samples: int
    num_logprobs: int | None  # None: no log-probabilities at all
    has_echo: bool
    has_tokens: bool  # False: max_tokens was 0, and the one token that was drawn is not told
    is_streamed: bool
    has_usage: bool
    created: int = field(default_factory=lambda: int(time.time()))
    offsets: Offsets = field(default_factory=Offsets)
    purpose: str = SamplingCall.Purpose.OPENAI

    @classmethod
    def read(cls, fields: Fields, number: str) -> "Completions":
        parameters.refuse_unsupported(fields, UNSUPPORTED)
        parameters.refuse_format(fields)
        num_samples = fields.whole("n", 1, least=1, most=parameters.MAX_SAMPLES)
        if fields.whole("best_of", num_samples, least=1) != num_samples:
            raise UserError("best_of is not supported here: leave it out.", field="best_of")
        num_logprobs = read_logprobs(fields)
        has_echo = fields.flag("echo", False)
        max_tokens = fields.whole("max_tokens", DEFAULT_TOKENS)
        if max_tokens == 0 and not has_echo:
            raise UserError("max_tokens is 0: send 1 or more, or echo.", field="max_tokens")
        # What the prompt is asked for comes with the whole answer.
        is_streamed = fields.flag("stream", False)
        params = parameters.read_params(fields, max_tokens=max_tokens or 1, is_streamed=is_streamed)
        prompts = read_prompts(fields)
        parameters.check_count(prompts, num_samples)
        asked = describe_asked(num_samples, params, num_logprobs, has_echo)
        return cls(
            id=f"cmpl-{number}",
            model=fields.text("model"),
            payloads=[prompt | asked for prompt in prompts],
            num_samples=num_samples,
            num_logprobs=num_logprobs,
            has_echo=has_echo,
            has_tokens=max_tokens > 0,
            is_streamed=is_streamed,
            has_usage=fields.inner("stream_options").flag("include_usage", False),
        )

    def describe(self, results: Sequence[Result]) -> Mapping[str, Any]:
        choices = [
            self._describe_choice(place, index, result)
            for place, result in enumerate(results)
            for index in range(self.num_samples)
        ]
        return self._wrap(choices) | {"usage": describe_usage(results)}

    def begin(self) -> Iterable[Chunk]:
        return ()

    def tell(self, place: int, piece: Piece) -> Iterable[Chunk]:
        """With an echo nothing is told before the prompt's own texts are known: at the end."""
        if self.has_echo or not (piece.text or self.num_logprobs is not None):
            return
        number = self._number(place, piece.index)
        logprobs = self._describe_logprobs(number, piece)
        yield self._chunk(number, text=piece.text, logprobs=logprobs)

    def end(self, place: int, result: Result) -> Iterable[Chunk]:
        for index in range(self.num_samples):
            yield self._wrap([self._describe_choice(place, index, result)])

    def close(self, results: Sequence[Result]) -> Iterable[Chunk]:
        if self.has_usage:
            yield self._wrap([]) | {"usage": describe_usage(results)}

    def _number(self, place: int, index: int) -> int:
        return place * self.num_samples + index

    def _wrap(self, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _chunk(self, number: int, *, text: str, logprobs: Any) -> Chunk:
        choice = {"index": number, "text": text, "logprobs": logprobs, "finish_reason": None}
        return self._wrap([choice])

    def _describe_choice(self, place: int, index: int, result: Result) -> dict[str, Any]:
        sequence, number = result.sequences[index], self._number(place, index)
        pieces = [read_prompt(result)] if self.has_echo else []
        pieces += [read_sample(index, sequence)] if self.has_tokens else []
        if self.is_streamed and not self.has_echo:
            pieces = []  # all has been told
        self.offsets.by_index.pop(number, None)
        parts = [self._describe_logprobs(number, piece) for piece in pieces]
        return {
            "index": number,
            "text": "".join(piece.text for piece in pieces),
            "logprobs": join_logprobs([part for part in parts if part is not None]),
            "finish_reason": sequence["stop_reason"] if self.has_tokens else "length",
        }

    def _describe_logprobs(self, number: int, piece: Piece) -> dict[str, Any] | None:
        if self.num_logprobs is None:
            return None
        alternatives: Sequence[Ranked] = piece.alternatives or [[] for _ in piece.tokens]
        rows = zip(piece.texts, piece.logprobs, alternatives, strict=True)
        return {
            "tokens": list(piece.texts),
            "token_logprobs": list(piece.logprobs),
            "top_logprobs": [name_likely(*row) for row in rows],
            "text_offset": self.offsets.advance(number, piece.texts),
        }


def describe_asked(
    num_samples: int, params: Mapping[str, Any], num_logprobs: int | None, has_echo: bool
) -> dict[str, Any]:
    asked: dict[str, Any] = {"num_samples": num_samples, "params": params}
    if num_logprobs:
        asked["topk_sample_logprobs"] = num_logprobs
    if num_logprobs is None:
        asked["without_logprobs"] = True
    if has_echo:
        asked["echo"] = True
    if has_echo and num_logprobs is not None:
        asked |= {"prompt_logprobs": True, "topk_prompt_logprobs": num_logprobs}
    return asked


def read_logprobs(fields: Fields) -> int | None:
    """A number here; chat's true and false are taken too."""
    if isinstance(fields.values.get("logprobs"), bool):
        return parameters.read_topk(fields, "top_logprobs") if fields.values["logprobs"] else None
    return parameters.read_topk(fields, "logprobs") if fields.has("logprobs") else None


def read_prompts(fields: Fields) -> list[dict[str, Any]]:
    """A text, token ids, or a list of either."""
    prompt = fields.values.get("prompt")
    if isinstance(prompt, str):
        return [{"text": prompt}]
    if isinstance(prompt, list) and prompt:
        if all(type(each) is int for each in prompt):
            return [{"prompt": prompt}]
        if all(isinstance(each, str) for each in prompt):
            return [{"text": each} for each in prompt]
        if all(isinstance(each, list) and is_ids(each) for each in prompt):
            return [{"prompt": each} for each in prompt]
    raise UserError(
        "prompt is a text, a list of texts, a list of token ids or a list of such lists.",
        field="prompt",
    )


def is_ids(values: list[Any]) -> bool:
    return bool(values) and all(type(each) is int for each in values)


def read_prompt(result: Result) -> Piece:
    """The prompt as if it had been said; its first token has no log-probability."""
    prompt = result.ended.result["prompt"]
    size = len(prompt["tokens"])
    return Piece(
        index=0,
        start=0,
        at=0,
        tokens=prompt["tokens"],
        logprobs=result.ended.result.get("prompt_logprobs") or [None] * size,
        texts=prompt["pieces"],
        alternatives=prompt["alternatives"] or [[] for _ in range(size)],
        text=prompt["text"],
    )


def name_likely(text: str, logprob: float | None, ranked: Ranked) -> dict[str, float] | None:
    """By their texts, as OpenAI has it: of tokens with one text the likeliest. The token itself is
    among them.
    """
    if logprob is None:
        return None
    named = {each: value for _, each, value in reversed(ranked)}
    return named if text in named or not ranked else {text: logprob, **named}


def join_logprobs(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not parts:
        return None
    return {name: [each for part in parts for each in part[name]] for name in parts[0]}
