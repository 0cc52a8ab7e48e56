"""An answer's tokens as its readers get them: texts, log-probabilities, calls of tools."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tokenizers.decoders import DecodeStream

from training.data.tokenizer import ChatTokenizer, show_nul
from training.data.tool_calls import has_mark, read_tool_calls
from training.routing import encode_routes
from training.types import SampledSequence, SampleOutput, SampleRequest
from webapp.deployments.models import SamplingCall
from workers.streaming import list_stop_strings, name_table
from workers.texts import cut_at_stop

Purpose = SamplingCall.Purpose

CUT = (Purpose.OPENAI, Purpose.FIRETITAN)  # whose answers end before a stop string, not with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """What a call's answer says beside its tokens."""

    request: SampleRequest
    tokenizer: ChatTokenizer
    stops: Sequence[str]  # its text ends before these
    tools: Sequence[Mapping[str, Any]]  # whose calls are read from its text

    @classmethod
    def of(cls, call: SamplingCall, request: SampleRequest, tokenizer: ChatTokenizer) -> "Style":
        return cls(
            request=request,
            tokenizer=tokenizer,
            stops=list_stop_strings(request) if call.purpose in CUT else (),
            tools=list_tools(call, tokenizer),
        )

    def describe_sequence(self, sequence: SampledSequence) -> dict[str, Any]:
        text = self.tokenizer.decode(sequence.tokens, skip_special=True)
        described: dict[str, Any] = {
            "tokens": list(sequence.tokens),
            "logprobs": list(sequence.logprobs),
            "text": cut_at_stop(text, self.stops),
            "pieces": split_pieces(sequence.tokens, self.tokenizer),
            "stop_reason": sequence.stop_reason,
        }
        if sequence.topk_logprobs is not None:
            described["alternatives"] = name_table(sequence.topk_logprobs, self.tokenizer)
        if self.request.with_both_logprobs:
            described["raw_logprobs"] = list(sequence.raw_logprobs or ())
            described["drawn_logprobs"] = list(sequence.drawn_logprobs or ())
        if sequence.routes is not None:
            described["routes"] = encode_routes(sequence.routes)
        if self.tools:
            described |= self._read_tools(described["text"])
        return described

    def _read_tools(self, text: str) -> dict[str, Any]:
        said, tool_calls = read_tool_calls(text, self.tools)
        return {"text": said, "tool_calls": [asdict(each) for each in tool_calls]}

    def describe_prompt(self, output: SampleOutput) -> dict[str, Any]:
        prompt, topk = list(self.request.prompt), output.topk_prompt_logprobs
        routes = output.prompt_routes
        return {
            "tokens": prompt,
            "pieces": split_pieces(prompt, self.tokenizer),
            "text": self.tokenizer.decode(prompt, skip_special=True),
            "alternatives": name_table(topk, self.tokenizer) if topk else None,
            "routes": None if routes is None else encode_routes(routes),
        }


def list_tools(call: SamplingCall, tokenizer: ChatTokenizer) -> Sequence[Mapping[str, Any]]:
    """None where their calls could not be told from other text."""
    tools = call.payload.get("tools") or ()
    return tools if has_mark(tokenizer.template) else ()


def split_pieces(tokens: Sequence[int], tokenizer: ChatTokenizer) -> list[str]:
    """One text a token, special ones spelled out. A character of several tokens is the last's."""
    stream = DecodeStream(skip_special_tokens=False)
    return [show_nul(stream.step(tokenizer.tokenizer, token) or "") for token in tokens]
