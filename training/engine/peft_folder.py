"""Reads an adapter folder in PEFT's format for serving: no gradients, the model's own dtype."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from training.engine.lora import Adapters, LoraLinear, Pair, name_tensors
from training.errors import InvalidInput

UNSUPPORTED = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern")


def read_pairs(folder: Path, adapters: Adapters) -> dict[str, Pair]:
    """Layer name -> A and B. Every tensor in the folder is used, or the folder is refused."""
    try:
        config = _read_config(folder)
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise InvalidInput(f"{folder} cannot be read as an adapter: {error}") from None
    layers = {name: layer for name, (_, layer) in adapters.layers.items()}
    pairs = {
        name: _take_pair(name, layer, tensors, config)
        for name, layer in layers.items()
        if name_tensors(name)[0] in tensors
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
    return config


def _take_pair(
    name: str, layer: LoraLinear, tensors: dict[str, torch.Tensor], config: Mapping[str, Any]
) -> Pair:
    if name_tensors(name)[1] not in tensors:
        raise InvalidInput(f"{name} has a lora_A and no lora_B")
    a, b = (
        tensors.pop(key).to(layer.weight.device, layer.weight.dtype) for key in name_tensors(name)
    )
    (outputs, inputs), rank = layer.weight.shape, len(a)
    if (*b.shape, *a.shape) != (outputs, rank, rank, inputs):
        raise InvalidInput(
            f"{name}: A of shape {tuple(a.shape)} and B of shape {tuple(b.shape)} do not fit "
            f"a layer of shape {tuple(layer.weight.shape)}: is it of another base model?"
        )
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank
    nothing = a.new_empty(0)
    scale = config["lora_alpha"] / divisor
    return Pair(a=a, b=b, a_grad=nothing, b_grad=nothing, scale=scale)
