"""A model's weights cut over the ranks by FSDP2, and passes that see them whole, layer by layer."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from training.engine.ranks import Ranks

WORTH_BYTES = 64 << 20  # of a model: looking for what is left takes a quarter of a second

T = TypeVar("T")
WHOLE = "run_whole"  # the method of a sharded model that counts as its forward


def shard_model(model: PreTrainedModel, ranks: Ranks) -> None:
    """Every decoder layer is gathered when it is used; embedding, head and norm for a whole pass.

    The pieces lie on the rank's device, wherever the model was before.
    """
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for layer in model.get_decoder().layers:  # type: ignore[no-untyped-call]
        fully_shard(layer, mesh=ranks.mesh, mp_policy=policy)
    fully_shard(model, mesh=ranks.mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # gradients are sums here, never means
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    # The head is used outside of the model's own forward, for a few positions.
    setattr(model, WHOLE, _call.__get__(model))
    register_fsdp_forward_method(model, WHOLE)
    model.get_input_embeddings().register_forward_hook(_require_gradient)


def _call(_model: nn.Module, act: Callable[[], T]) -> T:
    return act()


def _require_gradient(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """Ranks have different rows, and gather layers in the backward too: all of them must come by
    every layer, also where nothing before it is trained.
    """
    return output.requires_grad_() if torch.is_grad_enabled() else output


def run_whole(model: PreTrainedModel, act: Callable[[], T]) -> T:
    """Call it on all ranks, with gradients on all or on none. What it returns may be
    differentiated; after the last one call `give_up`.
    """
    return cast(T, getattr(model, WHOLE)(act))


def give_up(model: PreTrainedModel) -> None:
    """What is whole still: only pieces stay."""
    cast(FSDPModule, model).reshard()


def reclaim(path: Path) -> None:
    """Before and after a model is read: what was closed, and what is in pieces now, goes back to
    the system. Hooks hold models in circles, so they do not go by themselves."""
    if count_file_bytes(path) < WORTH_BYTES:
        return
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def count_file_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def count_local_bytes(model: nn.Module) -> int:
    """Of weights that lie on this rank."""
    pieces = [
        weight.to_local() if isinstance(weight, DTensor) else weight
        for weight in model.parameters()
    ]
    return sum(piece.numel() * piece.element_size() for piece in pieces)
