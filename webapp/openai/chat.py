"""POST /v1/chat/completions: messages are answered."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from webapp.core.errors import UserError
from webapp.core.fields import Fields
from webapp.deployments.models import SamplingCall
from webapp.deployments.pieces import Piece, read_sample
from webapp.openai import parameters
from webapp.openai.forms import Chunk, Result, describe_usage
from webapp.openai.messages import read_messages, read_tools

MAX_TOP = 20  # as OpenAI has it


@dataclass(slots=True, kw_only=True)
class Chat:
    """One request, and one call."""

    id: str
    model: str
    payloads: Sequence[Mapping[str, Any]]
    num_samples: int
    has_logprobs: bool
    is_streamed: bool
    has_usage: bool
    created: int = field(default_factory=lambda: int(time.time()))
    purpose: str = SamplingCall.Purpose.OPENAI

    @classmethod
    def read(cls, fields: Fields, number: str) -> "Chat":
        parameters.refuse_unsupported(fields)
        parameters.refuse_format(fields)
        num_samples = fields.whole("n", 1, least=1, most=parameters.MAX_SAMPLES)
        is_streamed, has_logprobs = fields.flag("stream", False), fields.flag("logprobs", False)
        num_top = fields.whole("top_logprobs", 0, most=MAX_TOP)
        if num_top and not has_logprobs:
            raise UserError("top_logprobs needs logprobs: true.", field="top_logprobs")
        params = parameters.read_params(
            fields, max_tokens=read_max_tokens(fields), is_streamed=is_streamed
        )
        payload: dict[str, Any] = {
            "messages": read_messages(fields),
            "num_samples": num_samples,
            "params": params,
        }
        if tools := read_tools(fields):
            payload["tools"] = tools
        if num_top:
            payload["topk_sample_logprobs"] = num_top
        if not has_logprobs:
            payload["without_logprobs"] = True
        return cls(
            id=f"chatcmpl-{number}",
            model=fields.text("model"),
            payloads=[payload],
            num_samples=num_samples,
            has_logprobs=has_logprobs,
            is_streamed=is_streamed,
            has_usage=fields.inner("stream_options").flag("include_usage", False),
        )

    def describe(self, results: Sequence[Result]) -> Mapping[str, Any]:
        (result,) = results
        choices = [self._describe_choice(*each) for each in enumerate(result.sequences)]
        usage = describe_usage(results)
        return self._wrap(choices, "chat.completion") | {"usage": usage}

    def begin(self) -> Iterable[Chunk]:
        for index in range(self.num_samples):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def tell(self, place: int, piece: Piece) -> Iterable[Chunk]:  # noqa: ARG002 - one call
        delta = {"content": piece.text} if piece.text else {}
        if delta or self.has_logprobs:
            yield self._chunk(piece.index, delta, logprobs=self._describe_logprobs(piece))

    def end(self, place: int, result: Result) -> Iterable[Chunk]:  # noqa: ARG002 - one call
        for index, sequence in enumerate(result.sequences):
            if tool_calls := self._describe_calls(index, sequence):
                numbered = [{"index": at, **each} for at, each in enumerate(tool_calls)]
                yield self._chunk(index, {"tool_calls": numbered})
            yield self._chunk(index, {}, finish_reason=find_finish(sequence))

    def close(self, results: Sequence[Result]) -> Iterable[Chunk]:
        if self.has_usage:
            usage = describe_usage(results)
            yield self._wrap([], "chat.completion.chunk") | {"usage": usage}

    def _wrap(self, choices: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _chunk(self, index: int, delta: Mapping[str, Any], **more: Any) -> Chunk:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._wrap([choice | more], "chat.completion.chunk")

    def _describe_choice(self, index: int, sequence: Mapping[str, Any]) -> dict[str, Any]:
        tool_calls = self._describe_calls(index, sequence)
        message: dict[str, Any] = {"role": "assistant", "content": sequence["text"]}
        if tool_calls:
            message["content"] = sequence["text"] if sequence["text"].strip() else None
            message["tool_calls"] = tool_calls
        return {
            "index": index,
            "message": message,
            "logprobs": self._describe_logprobs(read_sample(index, sequence)),
            "finish_reason": find_finish(sequence),
        }

    def _describe_calls(self, index: int, sequence: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [
            {"id": f"call_{self.id.rpartition('-')[2]}_{index}_{at}", "type": "function"}
            | {"function": call}
            for at, call in enumerate(sequence.get("tool_calls") or ())
        ]

    def _describe_logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if not self.has_logprobs:
            return None
        alternatives = piece.alternatives or [[] for _ in piece.tokens]
        rows = zip(piece.texts, piece.logprobs, alternatives, strict=True)
        content = [
            name_token(text, logprob)
            | {"top_logprobs": [name_token(each[1], each[2]) for each in ranked]}
            for text, logprob, ranked in rows
        ]
        return {"content": content, "refusal": None}


def read_max_tokens(fields: Fields) -> int | None:
    """None: up to the context."""
    for name in ("max_completion_tokens", "max_tokens"):
        if fields.has(name):
            return fields.whole(name, least=1)
    return None


def name_token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def find_finish(sequence: Mapping[str, Any]) -> str:
    reason: str = sequence["stop_reason"]
    return "tool_calls" if sequence.get("tool_calls") else reason
