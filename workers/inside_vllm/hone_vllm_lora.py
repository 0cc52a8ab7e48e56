"""Adapters inside vLLM: one product an adapter on the CPU, and output heads of scored prompts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from vllm.lora.ops import torch_ops
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
from vllm.lora.punica_wrapper.punica_gpu import PunicaWrapperGPU
from vllm.platforms import current_platform
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

# The hidden states [tokens of the step, width] of which prompts are scored now.
scored: ContextVar[torch.Tensor | None] = ContextVar("scored", default=None)


def multiply_rows(
    inputs: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Each row by the matrix of its adapter [adapters, (1,) out, in]; rows of none, -1, are 0.

    vLLM's own copies an adapter's matrix for every row, and takes -1 for the last adapter.
    """
    weights = weights.flatten(0, -3)
    found = torch.unique(indices).tolist()
    if len(found) == 1 and found[0] >= 0:
        return inputs.to(dtype) @ weights[found[0]].to(dtype).T
    outputs = torch.zeros(len(indices), weights.shape[1], dtype=dtype, device=inputs.device)
    for index in found:
        if index >= 0:
            is_its = indices == index
            outputs[is_its] = inputs[is_its].to(dtype) @ weights[index].to(dtype).T
    return outputs


def shrink(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    indices: torch.Tensor,
    scaling: float = 1.0,
) -> None:
    rows = multiply_rows(inputs, weights, indices, output.dtype)
    output[:, : rows.shape[1]] = scaling * rows


def expand(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    indices: torch.Tensor,
    add_inputs: bool = True,
) -> None:
    """The output may be padded beyond the adapter's width."""
    width = min(weights.shape[-2], output.shape[1])
    expand_slice(inputs, weights[..., :width, :], output, indices, 0, width, add_inputs)


def expand_slice(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    indices: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    if add_inputs and not bool((indices >= 0).any()):  # nothing to add, to as many as a vocabulary
        return
    rows = multiply_rows(inputs, weights, indices, output.dtype)
    part = output[:, slice_offset : slice_offset + slice_size]
    if add_inputs:
        part += rows
    else:
        part.copy_(rows)


def note_scored(score: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: GPUModelRunner, hidden_states: torch.Tensor, *args: Any) -> Any:
        token = scored.set(hidden_states)
        try:
            return score(self, hidden_states, *args)
        finally:
            scored.reset(token)

    return run


def follow_scored(add_logits: Callable[..., Any]) -> Callable[..., Any]:
    """An output head's adapter for rows of a prompt: vLLM has an index a request, not a row."""

    def run(
        self: PunicaWrapperBase, y: torch.Tensor, x: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        rows = scored.get()
        if rows is None:
            return add_logits(self, y, x, *args, **kwargs)
        first = (x.data_ptr() - rows.data_ptr()) // (rows.stride(0) * rows.element_size())
        with index_rows(self, self._token_lora_indices[first : first + len(x)]):
            return add_logits(self, y, x, *args, **kwargs)

    return run


@contextmanager
def index_rows(wrapper: PunicaWrapperBase, indices: torch.Tensor) -> Iterator[None]:
    """Inside the block `indices` stand where those of the sampled rows do."""
    number = wrapper.indices_len[1]
    kept = wrapper._sampler_indices[: max(number, len(indices))].clone()
    put_indices(wrapper, indices, len(indices))
    try:
        yield
    finally:
        put_indices(wrapper, kept, number)


def put_indices(wrapper: PunicaWrapperBase, indices: torch.Tensor, number: int) -> None:
    wrapper._sampler_indices[: len(indices)].copy_(indices)
    wrapper.indices_len[1] = number
    if isinstance(wrapper, PunicaWrapperGPU):
        wrapper.prompt_mapping_meta.prepare_tensors(wrapper.sampler_indices)


def install() -> None:
    runner = GPUModelRunner  # the CPU's is one too
    runner._get_prompt_logprobs_dict = note_scored(runner._get_prompt_logprobs_dict)
    for wrapper in (punica_cpu.PunicaWrapperCPU, PunicaWrapperGPU):
        wrapper.add_lora_logits = follow_scored(wrapper.add_lora_logits)
    if not current_platform.is_cpu():
        return
    kernels = {"bgmv_shrink": shrink, "bgmv_expand": expand, "bgmv_expand_slice": expand_slice}
    for name, kernel in kernels.items():
        for module in (lora_ops, torch_ops, punica_cpu):
            setattr(module, name, kernel)
