"""The JSON of the sampling calls, in vLLM's words: checked on its way in, built on its way out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from training.engine.calls import NewToken
from training.errors import InvalidInput
from training.routing import encode_routes
from training.sample_requests import read_targets
from training.types import (
    NO_TOKEN,
    SampledSequence,
    SampleOutput,
    SampleRequest,
    SamplingParams,
    TargetTokens,
    TokenLogprobs,
)

T = TypeVar("T")
BESIDE = 3  # as workers.vllm_wire asks for them
SPARSE = ("sparse_crow_indices", "sparse_col_indices")


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
        stop=strings or None,
    )
    return GenerateBody(
        model=read_text(body, "model"),
        request=read_request(body, fields, params),
        stop_ids=frozenset(read_list(fields, "stop_token_ids", int)),
        ignore_eos=bool(fields.get("ignore_eos")),
        is_streamed=bool(body.get("stream")),
    )


def read_request(
    body: Mapping[str, Any], fields: Mapping[str, Any], params: SamplingParams
) -> SampleRequest:
    """vLLM counts the likeliest of a prompt without the token that is there, and those of sampled
    ones with what stands beside them.
    """
    return SampleRequest(
        prompt=read_list(body, "token_ids", int),
        params=params,
        num_samples=read_number(fields, "n", int, 1),
        prompt_logprobs=fields.get("prompt_logprobs") is not None,
        prompt_logprobs_last_n=read_number(body, "prompt_logprobs_last_n", int, None),
        topk_prompt_logprobs=read_number(fields, "prompt_logprobs", int, 0),
        topk_sample_logprobs=max(0, read_number(fields, "logprobs", int, 0) - BESIDE),
        target_prompt_logprobs=read_target_tokens(body),
        prompt_alt_tokens_k=read_number(body, "prompt_alt_tokens_k", int, 0),
        with_routes=bool(body.get("with_routes")),
        with_both_logprobs=bool(body.get("with_both_logprobs")),
    )


def read_target_tokens(body: Mapping[str, Any]) -> TargetTokens | None:
    given = body.get("target_prompt_logprobs")
    if given is None:
        return None
    if not isinstance(given, dict) or len(read_list(given, "shape", int)) != 2:
        raise InvalidInput("target_prompt_logprobs must be an object with a shape of two numbers")
    names = ["data", *(name for name in SPARSE if given.get(name) is not None)]
    lists = {name: read_list(given, name, int) for name in names}
    return read_targets({"shape": given["shape"], **lists})


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
        "usage": describe_usage(output),
    }
    if output.prompt_logprobs is not None:
        answer["prompt_logprobs"] = describe_prompt(body.request, output)
    if output.target_prompt_logprobs is not None:
        answer["target_prompt_logprobs"] = output.target_prompt_logprobs.tolist()
    if output.prompt_alt_tokens is not None:
        drawn = output.prompt_alt_tokens
        answer["prompt_alt_tokens"] = {
            "token_ids": drawn.token_ids.tolist(),
            "logprobs": drawn.logprobs.tolist(),
        }
    if output.prompt_routes is not None:
        answer["prompt_routes"] = encode_routes(output.prompt_routes)
    return answer


def describe_prompt(
    request: SampleRequest, output: SampleOutput
) -> list[Mapping[str, Mapping[str, float]] | None]:
    """For each token of the prompt the likeliest in its place, and itself."""
    length, scored = len(request.prompt), output.prompt_logprobs or ()
    ranked = describe_rows(output.topk_prompt_logprobs) or [[] for _ in range(length)]
    rows = zip(request.prompt, scored, ranked, strict=True)
    return [
        None
        if logprob is None
        else {
            **{str(each["token_id"]): {"logprob": each["logprob"]} for each in best},
            str(token): {"logprob": logprob},
        }
        for token, logprob, best in rows
    ]


def describe_rows(table: TokenLogprobs | None) -> list[list[Mapping[str, Any]]]:
    """Cells that hold no token are left out."""
    if table is None:
        return []
    rows = zip(table.token_ids.tolist(), table.logprobs.tolist(), strict=True)
    return [
        [
            {"token_id": token, "logprob": logprob}
            for token, logprob in zip(ids, logprobs, strict=True)
            if logprob != NO_TOKEN
        ]
        for ids, logprobs in rows
    ]


def describe_choice(index: int, sequence: SampledSequence) -> Mapping[str, Any]:
    pairs = zip(sequence.tokens, sequence.logprobs, strict=True)
    content: list[dict[str, Any]] = [
        {"token_id": token, "logprob": value} for token, value in pairs
    ]
    for name, column in list_columns(sequence):
        content = [{**each, name: value} for each, value in zip(content, column, strict=True)]
    ranked = describe_rows(sequence.topk_logprobs)
    if ranked:
        content = [
            {**each, "top_logprobs": best} for each, best in zip(content, ranked, strict=True)
        ]
    routes = {} if sequence.routes is None else {"routes": encode_routes(sequence.routes)}
    return {
        "index": index,
        "token_ids": list(sequence.tokens),
        "finish_reason": sequence.stop_reason,
        "logprobs": {"content": content},
        **routes,
    }


def list_columns(sequence: SampledSequence) -> list[tuple[str, Sequence[float | None]]]:
    both = (("raw_logprob", sequence.raw_logprobs), ("drawn_logprob", sequence.drawn_logprobs))
    return [(name, column) for name, column in both if column is not None]


def describe_token(body: GenerateBody, token: NewToken) -> Mapping[str, Any]:
    choice = {
        "index": token.index,
        "token_ids": [token.token],
        "finish_reason": token.stop_reason,
        "logprobs": {"content": [describe_place(token)]},
    }
    return {"model": body.model, "choices": [choice]}


def describe_place(token: NewToken) -> Mapping[str, Any]:
    place = {"token_id": token.token, "logprob": token.logprob}
    if not token.ranked:
        return place
    best = [{"token_id": each, "logprob": logprob} for each, logprob in token.ranked]
    return {**place, "top_logprobs": best}


def describe_end(body: GenerateBody, output: SampleOutput) -> Mapping[str, Any]:
    """A stream's last event."""
    return {"model": body.model, "choices": [], "usage": describe_usage(output)}


def describe_usage(output: SampleOutput) -> Mapping[str, Any]:
    return {"prompt_tokens_details": {"cached_tokens": output.prompt_cache_hit_tokens}}
