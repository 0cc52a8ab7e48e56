"""Reads an adapter folder in PEFT's format for serving: no gradients, the model's own dtype."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from training.engine.adapters import Adapter, Adapters
from training.engine.lora import Adapted, Block, Pair, cut_stack
from training.engine.projection import without_head
from training.errors import InvalidInput
from training.manifest import MANIFEST_FILE, read_manifest

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
        config = read_config(folder)
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


def read_weights(folder: Path, adapter: Adapter, base_digest: str) -> dict[str, torch.Tensor]:
    """What a run of that rank and those layers begins with, in float32: whoever made the folder,
    its A and B are of the same layers and rank. Another alpha is made up for in the Bs.
    """
    check_base(folder, base_digest)
    try:
        config = read_config(folder)
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise InvalidInput(f"{folder.name} cannot be read as an adapter: {error}") from None
    check_layers(folder, tensors, adapter)
    divisor = math.sqrt(adapter.spec.rank) if config.get("use_rslora") else adapter.spec.rank
    share = config["lora_alpha"] / divisor / (adapter.spec.alpha / adapter.spec.rank)
    bs = {name for _, block in adapter.blocks.values() for name in block.names}
    return {
        name: tensor.float() * (share if name in bs else 1.0) for name, tensor in tensors.items()
    }


def check_base(folder: Path, base_digest: str) -> None:
    """Of a folder that this server has written. Of others only the shapes tell."""
    if (folder / MANIFEST_FILE).is_file():
        manifest = read_manifest(folder)
        if manifest.type != "adapter":
            raise InvalidInput(f"{folder.name} holds all weights of a model: that is no adapter")
        if manifest.base_digest != base_digest:
            raise InvalidInput(f"{folder.name} was trained on another base model than this one")


def check_layers(folder: Path, tensors: Mapping[str, torch.Tensor], adapter: Adapter) -> None:
    own = without_head(adapter.tensors)
    if missing := sorted(own.keys() - tensors.keys()):
        raise InvalidInput(
            f"{folder.name} does not train all that this run trains: {missing[0]} is missing"
        )
    if further := sorted(tensors.keys() - own.keys()):
        raise InvalidInput(
            f"{folder.name} trains more than this run does: it has no place for {further[0]}"
        )
    for name, tensor in sorted(tensors.items()):
        if tensor.shape != own[name].shape:
            raise InvalidInput(
                f"{folder.name} has {tuple(tensor.shape)} for {name}, this run of rank "
                f"{adapter.spec.rank} has {tuple(own[name].shape)}: take a run of its rank and base"
            )


def read_config(folder: Path) -> Mapping[str, Any]:
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
