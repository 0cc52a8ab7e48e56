"""A sampling request as its call's row keeps it: written by the wire, read by the sampler."""

from collections.abc import Mapping
from typing import Any

from training.sample_requests import describe_targets, read_targets
from training.types import SampleRequest, SamplingParams

SCORES = (
    "prompt_logprobs_last_n",
    "topk_prompt_logprobs",
    "topk_sample_logprobs",
    "prompt_alt_tokens_k",
    "with_routes",
    "with_both_logprobs",
    "without_logprobs",
)


def write_payload(request: SampleRequest) -> dict[str, Any]:
    """What was not asked for is left out: most requests ask for samples alone."""
    params, targets = request.params, request.target_prompt_logprobs
    payload: dict[str, Any] = {
        "prompt": list(request.prompt),
        "num_samples": request.num_samples,
        "params": {
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "seed": params.seed,
            "stop": None if params.stop is None else list(params.stop),
        },
        "prompt_logprobs": request.prompt_logprobs,
    }
    asked = {name: value for name in SCORES if (value := getattr(request, name))}
    scored = {"target_prompt_logprobs": describe_targets(targets)} if targets else {}
    return payload | asked | scored


def read_payload(
    payload: Mapping[str, Any], prompt: list[int], params: Mapping[str, Any]
) -> SampleRequest:
    """`prompt` and `params` may have been made of the payload's messages."""
    stop, targets = params.get("stop"), payload.get("target_prompt_logprobs")
    asked = {name: payload[name] for name in SCORES if name in payload}
    return SampleRequest(
        prompt=prompt,
        params=SamplingParams(**{**params, "stop": None if stop is None else tuple(stop)}),
        num_samples=payload.get("num_samples", 1),
        prompt_logprobs=bool(payload.get("prompt_logprobs")),
        target_prompt_logprobs=read_targets(targets) if targets else None,
        **asked,
    )
