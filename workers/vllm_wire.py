"""A sampling request in vLLM's words, and its answer read. Our own server says a little more.

vLLM gives sampled log-probabilities of the tempered distribution, as we do, where it was started
with `--logprobs-mode processed_logprobs`; without Hone's extension that also cuts them to top-k and
top-p. With its default, `raw_logprobs`, they are the model's own at every temperature.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np

from training.errors import InvalidInput
from training.routing import decode_routes
from training.sample_requests import describe_targets
from training.types import (
    IntArray,
    SampledSequence,
    SampleOutput,
    SampleRequest,
    StopReason,
    TokenLogprobs,
)

NAMED = "token_id:"
BESIDE = 3  # of the likeliest that vLLM is asked for
GREEDY = 1e-5  # below it nothing is drawn, and all samples of a request are the same
SEEDS = 1 << 62

Row = Mapping[str, Mapping[str, Any]] | None  # a prompt token's place: {token id: what is said}


class BrokenAnswer(Exception):  # noqa: N818 - the request may be repeated
    """The server gave up in the middle of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedToken:
    """One token of sample `index`; `stop_reason` comes with the last one."""

    index: int
    token: int
    logprob: float | None  # None: nobody asked for it
    stop_reason: StopReason | None
    ranked: Sequence[tuple[int, float]] = ()  # the likeliest in its place, where they are asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedUsage:
    """What a stream says at its end, of all samples."""

    num_cached_tokens: int


def build_body(model: str, request: SampleRequest) -> dict[str, Any]:
    params, stop = request.params, request.params.stop
    strings = [each for each in stop or () if isinstance(each, str)]
    chosen: dict[str, Any] = {
        "n": count_asked(request),
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "logprobs": None if request.without_logprobs else count_likeliest(request),
        "stop": strings,
        "stop_token_ids": [each for each in stop or () if isinstance(each, int)],
        "ignore_eos": stop == (),
    }
    if params.max_tokens is not None:
        chosen["max_tokens"] = params.max_tokens
    if params.seed is not None:
        chosen["seed"] = choose_seed(request, params.seed)
    if request.prompt_logprobs or request.topk_prompt_logprobs:
        chosen["prompt_logprobs"] = request.topk_prompt_logprobs
    body = {"model": model, "token_ids": list(request.prompt), "sampling_params": chosen}
    # vLLM watches for stop strings only where it makes text.
    text = {"output_mode": "text", "return_token_ids": True} if strings else {}
    return body | text | build_extras(request)


def count_likeliest(request: SampleRequest) -> int:
    """The sampled token counts as one, as it may be none of the k likeliest, and so do the two
    numbers that Hone's extension tells beside it.
    """
    is_asked = request.topk_sample_logprobs or request.with_both_logprobs
    return request.topk_sample_logprobs + BESIDE if is_asked else 0


def count_asked(request: SampleRequest) -> int:
    """vLLM refuses to decode several times without drawing."""
    return request.num_samples if request.params.temperature >= GREEDY else 1


def choose_seed(request: SampleRequest, seed: int) -> int:
    """vLLM's sample i is drawn with seed + i: neighbours would share all samples but one."""
    if request.num_samples == 1:
        return seed
    return int.from_bytes(sha256(str(seed).encode()).digest()[:8], "big") % SEEDS


def build_extras(request: SampleRequest) -> dict[str, Any]:
    """What only our own server answers; vLLM passes over words that it does not know."""
    extras: dict[str, Any] = {}
    if request.prompt_logprobs_last_n is not None:
        extras["prompt_logprobs_last_n"] = request.prompt_logprobs_last_n
    if request.target_prompt_logprobs is not None:
        extras["target_prompt_logprobs"] = describe_targets(request.target_prompt_logprobs)
    if request.prompt_alt_tokens_k:
        extras["prompt_alt_tokens_k"] = request.prompt_alt_tokens_k
    if request.with_routes:
        extras["with_routes"] = True
    if request.with_both_logprobs:
        extras["with_both_logprobs"] = True
    return extras


def read_output(answer: Mapping[str, Any], request: SampleRequest) -> SampleOutput:
    choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
    choices *= request.num_samples // len(choices)
    rows = read_rows(answer, request)
    k = request.topk_prompt_logprobs
    return SampleOutput(
        sequences=[read_choice(choice, request) for choice in choices],
        prompt_logprobs=read_prompt(request.prompt, rows) if request.prompt_logprobs else None,
        topk_prompt_logprobs=read_table(map(read_row, rows), k) if k else None,
        target_prompt_logprobs=read_targets(answer) if request.target_prompt_logprobs else None,
        prompt_alt_tokens=read_drawn(answer) if request.prompt_alt_tokens_k else None,
        prompt_routes=read_routes(answer, "prompt_routes") if request.with_routes else None,
        prompt_cache_hit_tokens=read_cached(answer),
    )


def read_rows(answer: Mapping[str, Any], request: SampleRequest) -> Sequence[Row]:
    """One for each token of the prompt; vLLM scores all of them however few are asked for."""
    rows: Sequence[Row] = answer.get("prompt_logprobs") or []
    if request.prompt_logprobs_last_n is None:
        return rows
    unasked = len(rows) - request.prompt_logprobs_last_n
    return [None] * unasked + list(rows[unasked:])


def read_prompt(prompt: Sequence[int], rows: Sequence[Row]) -> list[float | None]:
    pairs = zip(prompt, rows, strict=False)
    return [None if row is None else row[str(token)]["logprob"] for token, row in pairs]


def read_row(row: Row) -> list[tuple[int, float]]:
    return [(int(token), said["logprob"]) for token, said in (row or {}).items()]


def read_table(rows: Iterable[list[tuple[int, float]]], k: int) -> TokenLogprobs:
    """The k likeliest of each row: the token that stands there is said even where it is none."""
    best = [sorted(row, key=lambda pair: -pair[1])[:k] for row in rows]
    table = TokenLogprobs.make_empty(len(best), k)
    for index, row in enumerate(best):
        for place, (token, logprob) in enumerate(row):
            table.token_ids[index, place] = token
            table.logprobs[index, place] = logprob
    return table


def read_targets(answer: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(require(answer, "target_prompt_logprobs"), np.float32)


def read_drawn(answer: Mapping[str, Any]) -> TokenLogprobs:
    drawn = require(answer, "prompt_alt_tokens", asked="prompt_alt_tokens_k")
    return TokenLogprobs(
        token_ids=np.array(drawn["token_ids"], np.int64),
        logprobs=np.array(drawn["logprobs"], np.float32),
    )


def require(answer: Mapping[str, Any], name: str, *, asked: str = "") -> Any:
    if answer.get(name) is None:
        raise InvalidInput(
            f"{asked or name} is computed by Hone's own sampling server; the one that answers for"
            " this model is another: leave it out"
        )
    return answer[name]


def read_routes(said: Mapping[str, Any], name: str) -> IntArray | None:
    """None: of a prompt of one token there are none."""
    return decode_routes(require(said, name, asked="with_routes"), name)


def read_choice(choice: Mapping[str, Any], request: SampleRequest) -> SampledSequence:
    content = [] if request.without_logprobs else choice["logprobs"]["content"]
    topk = request.topk_sample_logprobs
    ranked = map(read_ranked, content)
    both = [read_both(said) for said in content] if request.with_both_logprobs else []
    has_both = bool(both) and None not in both
    return SampledSequence(
        tokens=choice["token_ids"],
        logprobs=[each["logprob"] for each in content],
        stop_reason=read_reason(choice["finish_reason"]),
        raw_logprobs=[each[0] for each in both if each] if has_both else None,
        drawn_logprobs=[each[1] for each in both if each] if has_both else None,
        topk_logprobs=read_table(ranked, topk) if topk else None,
        routes=read_routes(choice, "routes") if request.with_routes else None,
    )


def read_both(said: Mapping[str, Any]) -> tuple[float | None, float | None] | None:
    """Ours says them by name, vLLM with Hone's extension as 1 - x among the likeliest; None: a
    server that does not tell them.
    """
    if "raw_logprob" in said:
        return said["raw_logprob"], said["drawn_logprob"]
    told = [1 - each["logprob"] for each in said.get("top_logprobs") or () if is_beside(each)]
    return (told[0], told[1]) if len(told) == 2 else None


def is_beside(said: Mapping[str, Any]) -> bool:
    """No log-probability is above 0."""
    return bool(said["logprob"] > 0.5)


def read_ranked(said: Mapping[str, Any]) -> list[tuple[int, float]]:
    likeliest = (each for each in said.get("top_logprobs") or () if not is_beside(each))
    return [(read_id(each), each["logprob"]) for each in likeliest]


def read_id(said: Mapping[str, Any]) -> int:
    """Where vLLM makes text, it says `token_id:7` if it was started so, and else no id."""
    return int(said["token_id"] if "token_id" in said else said["token"].removeprefix(NAMED))


def repeat(
    said: StreamedToken | StreamedUsage, request: SampleRequest
) -> list[StreamedToken | StreamedUsage]:
    """Of all samples, where they are the same and one was asked for."""
    if isinstance(said, StreamedUsage) or count_asked(request) == request.num_samples:
        return [said]
    return [replace(said, index=index) for index in range(request.num_samples)]


def read_reason(said: str) -> StopReason:
    if said not in ("length", "stop"):
        raise BrokenAnswer(f"the sampling server gave up the request: {said}")
    return "length" if said == "length" else "stop"


def read_event(line: str, request: SampleRequest) -> list[StreamedToken | StreamedUsage]:
    kind, _, data = line.partition(": ")
    if kind != "data" or data == "[DONE]":
        return []
    event = json.loads(data)
    if "error" in event:
        message, code = read_refusal(data), event["error"].get("code")
        raise BrokenAnswer(message) if code and code >= 500 else InvalidInput(message)
    if not event["choices"]:
        return [StreamedUsage(num_cached_tokens=read_cached(event))]
    return [token for choice in event["choices"] for token in read_piece(choice, request)]


def read_cached(answer: Mapping[str, Any]) -> int:
    details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
    return details.get("cached_tokens") or 0


def read_refusal(text: str) -> str:
    """What an answer says that is none."""
    try:
        said = json.loads(text)
    except ValueError:
        return text
    error = said.get("error", said) if isinstance(said, dict) else said
    return str(error.get("message", error) if isinstance(error, dict) else error)


def read_piece(choice: Mapping[str, Any], request: SampleRequest) -> list[StreamedToken]:
    tokens = choice["token_ids"]
    content = choice["logprobs"]["content"] if choice["logprobs"] else []
    if request.without_logprobs:
        content = [{"logprob": None}] * len(tokens)
    pairs = list(zip(tokens, content, strict=True))
    reasons: list[StopReason | None] = [None] * len(pairs)
    reason = read_reason(choice["finish_reason"]) if choice["finish_reason"] else None
    if pairs:
        reasons[-1] = reason
    return [
        StreamedToken(
            index=choice["index"],
            token=token,
            logprob=said["logprob"],
            stop_reason=why,
            ranked=read_ranked(said),
        )
        for (token, said), why in zip(pairs, reasons, strict=True)
    ]
