"""Runs inside vLLM's workers: what is told of a drawn token, as Hone's own server tells it.

What is drawn stays the same, on a CPU too where a prompt is read in pieces. vLLM's
`processed_logprobs` are of what top-k and top-p have left.
"""

from collections.abc import Callable
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.outputs import SamplerOutput
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler
from vllm.v1.sample.sampler import Sampler
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

MODE = "processed_logprobs"
BESIDE = 3  # who asks for so many likeliest tokens has room for two more numbers among them
GREEDY = 1e-5

Forward = Callable[..., Any]


def report_before_cut(forward: Forward) -> Forward:
    """Of the tempered distribution, from before top-k and top-p."""

    def run(
        self: TopKTopPSampler, logits: torch.Tensor, generators: Any, k: Any, p: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        is_cut = (k is not None or p is not None) and self.logprobs_mode == MODE
        whole = logits.log_softmax(dim=-1, dtype=torch.float32) if is_cut else None
        sampled, self.after_cut = forward(self, logits, generators, k, p)
        return sampled, self.after_cut if whole is None else whole

    return run


def tell_both(forward: Forward) -> Forward:
    """Beside it the model's own log-probability, and that of what was drawn from after the cut.

    They stand among the likeliest tokens as those of the unlikeliest two, and as 1 - x, which is
    more than a log-probability can be.
    """

    def run(
        self: Sampler, logits: torch.Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any
    ) -> SamplerOutput:
        self.topk_topp_sampler.after_cut = None
        if (sampling_metadata.max_num_logprobs or 0) < BESIDE or self.logprobs_mode != MODE:
            return forward(self, logits, sampling_metadata, *args, **kwargs)
        own = logits.log_softmax(dim=-1, dtype=torch.float32)
        output = forward(self, logits, sampling_metadata, *args, **kwargs)
        drawn, temperature = self.topk_topp_sampler.after_cut, sampling_metadata.temperature
        if drawn is None:  # nothing was drawn
            drawn = own
        elif temperature is not None:
            drawn = torch.where((temperature < GREEDY)[:, None], own, drawn)
        return add_both(output, own, drawn)

    return run


def add_both(output: SamplerOutput, own: torch.Tensor, drawn: torch.Tensor) -> SamplerOutput:
    told, tokens = output.logprobs_tensors, output.sampled_token_ids[:, :1].long()
    both = 1 - torch.cat([own.gather(1, tokens), drawn.gather(1, tokens)], dim=1)
    ids = own.topk(2, dim=1, largest=False).indices.to(told.logprob_token_ids.dtype)
    output.logprobs_tensors = told._replace(
        logprob_token_ids=put_second(told.logprob_token_ids, ids),
        logprobs=put_second(told.logprobs, both),
    )
    return output


def put_second(columns: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
    """The first is the drawn token's."""
    return torch.cat([columns[:, :1], more, columns[:, 1:]], dim=1)


def take_draws_back(sample: Forward) -> Forward:
    """Something is drawn after each piece of a prompt, and only what follows the last one counts.

    vLLM takes a seeded request's other draws back by a number that a CPU's generators do not have:
    its worker ended there, whenever more was to be read than fits into one step.
    """

    def run(self: GPUModelRunner, *args: Any, **kwargs: Any) -> SamplerOutput:
        generators, is_dropped = self.input_batch.generators, self.discard_request_mask.np
        before = {row: each.get_state() for row, each in generators.items() if is_dropped[row]}
        output = sample(self, *args, **kwargs)
        for row, state in before.items():
            generators[row].set_state(state)
        return output

    return run


def leave_draws(keep_books: Forward) -> Forward:
    """They have been taken back: it finds no generator to do it with."""

    def run(self: GPUModelRunner, *args: Any, **kwargs: Any) -> Any:
        generators, self.input_batch.generators = self.input_batch.generators, {}
        try:
            return keep_books(self, *args, **kwargs)
        finally:
            self.input_batch.generators = generators

    return run


def install() -> None:
    if current_platform.is_cpu():
        GPUModelRunner._sample = take_draws_back(GPUModelRunner._sample)
        GPUModelRunner._bookkeeping_sync = leave_draws(GPUModelRunner._bookkeeping_sync)
    for name in ("forward_native", "forward_cpu"):
        setattr(TopKTopPSampler, name, report_before_cut(getattr(TopKTopPSampler, name)))
    Sampler.forward = tell_both(Sampler.forward)
