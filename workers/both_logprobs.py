"""A drawn token's log-probability twice: the model's own, and that of what it was drawn from.

Our own server tells both. vLLM tells what it drew from; where that is not the model's own
distribution, the sample is read once more, as a prompt.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from training.errors import InvalidInput
from training.types import SampledSequence, SampleOutput, SampleRequest, SamplingParams
from workers.vllm import SamplingServer


async def complete_both(
    server: SamplingServer, model: str, request: SampleRequest, output: SampleOutput
) -> SampleOutput:
    if not request.with_both_logprobs or all(each.raw_logprobs for each in output.sequences):
        return output
    if is_neutral(request.params):
        return replace(output, sequences=[repeat_logprobs(each) for each in output.sequences])
    reading = (read_again(server, model, request, each) for each in output.sequences)
    return replace(output, sequences=await asyncio.gather(*reading))


def is_neutral(params: SamplingParams) -> bool:
    """The model's own distribution is what is drawn from; temperature 0 draws nothing."""
    return params.temperature == 0 or (
        params.temperature == 1 and params.top_p == 1 and params.top_k < 1
    )


def repeat_logprobs(sequence: SampledSequence) -> SampledSequence:
    return replace(sequence, raw_logprobs=sequence.logprobs, drawn_logprobs=sequence.logprobs)


async def read_again(
    server: SamplingServer, model: str, request: SampleRequest, sequence: SampledSequence
) -> SampledSequence:
    """The model's own are None where the sample fills its context to the last token."""
    prompt, params = (
        [*request.prompt, *sequence.tokens],
        SamplingParams(max_tokens=1, temperature=0),
    )
    scored = SampleRequest(prompt=prompt, params=params, prompt_logprobs=True)
    raw: Sequence[float | None] = [None] * len(sequence.tokens)
    try:
        output = await server.generate(model, scored)
        raw = (output.prompt_logprobs or ())[len(request.prompt) :]
    except InvalidInput:
        pass
    return replace(sequence, raw_logprobs=raw, drawn_logprobs=sequence.logprobs)
