"""Reads an adapter folder in PEFT's format for serving: no gradients, the model's own dtype."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from training.engine.adapters import Adapters
from training.engine.lora import Adapted, Block, Pair, cut_stack
from training.errors import InvalidInput

# Each changes what A and B mean, or names weights beside them.
UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "lora_bias",
    "fan_in_fan_out",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "target_parameters",
)
# Ways to begin that leave the base model's weights as they are; others were trained on other ones.
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


def read_pairs(folder: Path, adapters: Adapters) -> dict[str, Pair]:
    """Layer name -> A and B. Every tensor in the folder is used, or the folder is refused."""
    try:
        config = _read_config(folder)
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise InvalidInput(f"{folder} cannot be read as an adapter: {error}") from None
    like = adapters.head.weight
    pairs = {
        name: _take_pair(name, layer, tensors, config, like)
        for name, (_, layer) in adapters.layers.items()
        if layer.name_blocks(name, 1)[0].names[0] in tensors
    }
    if tensors:
        raise InvalidInput(f"{folder}: the base model has no place for {min(tensors)}")
    return pairs


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file() or not (folder / "adapter_model.safetensors").is_file():
        raise InvalidInput(
            f"{folder} is not an adapter: adapter_config.json and adapter_model.safetensors needed"
        )
    config: Mapping[str, Any] = json.loads(path.read_text())
    if not isinstance(config, dict) or not isinstance(config.get("lora_alpha"), int | float):
        raise InvalidInput(f"{path} has no lora_alpha")
    for name in UNSUPPORTED:
        if config.get(name):
            raise InvalidInput(f"{path}: {name} is not supported, only plain LoRA is")
    start = config.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        raise InvalidInput(
            f"{path}: init_lora_weights is {start!r}, which changes the base model's weights too: "
            "only plain LoRA is supported"
        )
    return config


def _take_pair(
    name: str,
    layer: Adapted,
    tensors: dict[str, torch.Tensor],
    config: Mapping[str, Any],
    like: torch.Tensor,
) -> Pair:
    rank = len(tensors[layer.name_blocks(name, 1)[0].names[0]])
    a, b = (_take_block(name, block, tensors) for block in layer.name_blocks(name, rank))
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank
    nothing = a.new_empty(len(a), 0)
    pair = Pair(
        a=a.to(like.device, like.dtype),
        b=b.to(like.device, like.dtype),
        a_grad=nothing,
        b_grad=nothing,
        scale=config["lora_alpha"] / divisor,
    )
    return cut_stack(pair) if pair.a.ndim == 3 else pair


def _take_block(name: str, block: Block, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    missing = [each for each in block.names if each not in tensors]
    if missing:
        raise InvalidInput(f"{name} has only a part of its weights: {missing[0]} is missing")
    matrices = [tensors.pop(each) for each in block.names]
    for each, matrix in zip(block.names, matrices, strict=True):
        if matrix.shape != block.shape:
            raise InvalidInput(
                f"{name}: {each} has the shape {tuple(matrix.shape)}, the layer needs "
                f"{block.shape}: is it of another base model?"
            )
    return torch.stack(matrices) if block.is_stack else matrices[0]
