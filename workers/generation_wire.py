"""The JSON of the sampling calls, in vLLM's words: checked on its way in, built on its way out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from training.engine.calls import NewToken
from training.errors import InvalidInput
from training.types import SampledSequence, SampleOutput, SampleRequest, SamplingParams

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateBody:
    """What POST /inference/v1/generate says, checked."""

    model: str
    request: SampleRequest
    stop_ids: frozenset[int]
    ignore_eos: bool
    is_streamed: bool


def read_generate(body: Mapping[str, Any]) -> GenerateBody:
    fields = body.get("sampling_params") or {}
    stop = fields.get("stop") or ()
    strings = (stop,) if isinstance(stop, str) else read_list(fields, "stop", str)
    params = SamplingParams(
        max_tokens=read_number(fields, "max_tokens", int, None),
        temperature=read_number(fields, "temperature", float, 1.0),
        top_k=read_number(fields, "top_k", int, -1),
        top_p=read_number(fields, "top_p", float, 1.0),
        seed=read_number(fields, "seed", int, None),
        stop=strings,
    )
    request = SampleRequest(
        prompt=read_list(body, "token_ids", int),
        params=params,
        num_samples=read_number(fields, "n", int, 1),
        prompt_logprobs=fields.get("prompt_logprobs") is not None,
    )
    return GenerateBody(
        model=read_text(body, "model"),
        request=request,
        stop_ids=frozenset(read_list(fields, "stop_token_ids", int)),
        ignore_eos=bool(fields.get("ignore_eos")),
        is_streamed=bool(body.get("stream")),
    )


def read_text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"{name} is missing: it must be text")
    return value


def read_list(body: Mapping[str, Any], name: str, kind: type[T]) -> tuple[T, ...]:
    values = body.get(name)
    values = [] if values is None else values
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise InvalidInput(f"{name} must be a list of {kind.__name__}")
    return tuple(values)


def read_number(body: Mapping[str, Any], name: str, kind: type[float], default: Any) -> Any:
    """An integer passes for a float; true and false pass for nothing."""
    value = body.get(name)
    if value is None:
        return default
    if type(value) not in (kind, int):
        raise InvalidInput(f"{name} must be {kind.__name__}, not {value!r}")
    return kind(value)


def describe_error(status: int, message: str) -> Mapping[str, Any]:
    return {"error": {"message": message, "code": status}}


def describe_output(body: GenerateBody, output: SampleOutput) -> Mapping[str, Any]:
    answer: dict[str, Any] = {
        "model": body.model,
        "choices": [describe_choice(*each) for each in enumerate(output.sequences)],
    }
    if output.prompt_logprobs is not None:
        pairs = zip(body.request.prompt, output.prompt_logprobs, strict=True)
        answer["prompt_logprobs"] = [
            None if logprob is None else {str(token): {"logprob": logprob}}
            for token, logprob in pairs
        ]
    return answer


def describe_choice(index: int, sequence: SampledSequence) -> Mapping[str, Any]:
    pairs = zip(sequence.tokens, sequence.logprobs, strict=True)
    return {
        "index": index,
        "token_ids": list(sequence.tokens),
        "finish_reason": sequence.stop_reason,
        "logprobs": {"content": [{"token_id": token, "logprob": value} for token, value in pairs]},
    }


def describe_token(body: GenerateBody, token: NewToken) -> Mapping[str, Any]:
    choice = {
        "index": token.index,
        "token_ids": [token.token],
        "finish_reason": token.stop_reason,
        "logprobs": {"content": [{"token_id": token.token, "logprob": token.logprob}]},
    }
    return {"model": body.model, "choices": [choice]}
