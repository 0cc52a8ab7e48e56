"""Which models can be trained and sampled exactly, decided from config.json alone.

Sequences are laid end to end in one row, so whatever passes from token to token has to pass through
attention, and nothing may depend on how long the row is. What is not known here would be computed
wrongly without a word, so it is refused by name.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import InvalidInput

Config = Mapping[str, Any]

# Each is tested against transformers and peft, with the model_type that makes transformers load it.
ARCHITECTURES = {
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
    "GemmaForCausalLM": "gemma",
    "GraniteForCausalLM": "granite",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "Olmo2ForCausalLM": "olmo2",
    "Olmo3ForCausalLM": "olmo3",
    "Phi3ForCausalLM": "phi3",
    "PhiForCausalLM": "phi",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "SmolLM3ForCausalLM": "smollm3",
}
LAYERS = frozenset({"full_attention", "sliding_attention"})
ROPES = frozenset({"default", "dynamic", "linear", "llama3", "longrope", "yarn"})
PHI3_CONTEXT = 4096  # before LongRoPE, where its config.json does not say it
OTHER_INPUTS = ("vision_config", "audio_config", "text_config", "thinker_config")
STATES = ("state_size", "ssm_cfg", "mamba_d_state", "linear_num_key_heads", "conv_L_cache")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What is known of a model before its weights are read."""

    name: str
    context_tokens: int
    vocab_size: int


def read_architecture(folder: Path) -> Architecture:
    """Raises InvalidInput with the reason where the model in the folder cannot be trained."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        raise InvalidInput(f"{folder} has no config.json.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{file} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise InvalidInput(f"{file} does not hold a JSON object.")
    return inspect_config(config)


def inspect_config(config: Config) -> Architecture:
    name = find_name(config)
    reason = find_foreign(config) if name not in ARCHITECTURES else find_unusual(name, config)
    if reason:
        known = ", ".join(ARCHITECTURES)
        subject = name or "A model whose config.json names no architecture"
        raise InvalidInput(f"{subject} {reason}. The ones that can be trained are {known}.")
    if config.get("quantization_config"):
        raise InvalidInput("The weights are quantized: add the unquantized directory.")
    return Architecture(
        name=name, context_tokens=find_context(config), vocab_size=read_size(config, "vocab_size")
    )


def find_name(config: Config) -> str:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    return name if isinstance(name, str) else ""


def find_foreign(config: Config) -> str:
    """Why a model of no known family is refused, as far as its config.json tells."""
    others = ", ".join(sorted(set(list_layers(config)) - LAYERS))
    signs = {
        "reads its input with an encoder of its own": config.get("is_encoder_decoder"),
        "takes more than text": any(key in config for key in OTHER_INPUTS),
        f"has layers of {others}, and only layers of attention can be packed": others,
        "keeps a state from token to token, which sequences in one row would hand on": any(
            key in config for key in STATES
        ),
        "is a mixture of experts of another kind": any(config.get(key) for key in EXPERTS),
    }
    found = (reason for reason, sign in signs.items() if sign)
    return next(found, "computes in a way that is not known here")


def find_unusual(name: str, config: Config) -> str:
    """What makes a model of a known family another one."""
    if config.get("model_type") != ARCHITECTURES[name]:
        return f"comes with the model_type {config.get('model_type')!r}, not {ARCHITECTURES[name]}"
    if others := set(list_layers(config)) - LAYERS:
        return (
            f"has layers of {', '.join(sorted(others))}, and only layers of attention can be packed"
        )
    if config.get("use_bidirectional_attention") or config.get("is_causal", True) is not True:
        return "attends to tokens that follow, and only causal models can be trained"
    if others := {name_rope(config, rope) for rope in list_ropes(config)} - ROPES:
        return f"turns its positions by {', '.join(sorted(others))}, which is not known here"
    return find_gap(config)


def find_gap(config: Config) -> str:
    """PEFT takes `gate_proj` for the experts' and has no name left for a dense layer's."""
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        return "has layers without experts (mlp_only_layers, decoder_sparse_step) between others"
    return ""


def list_layers(config: Config) -> list[str]:
    """The kinds of its layers, where config.json says it layer by layer."""
    kinds = config.get("layer_types")
    return [str(kind) for kind in kinds] if isinstance(kinds, list) else []


def list_ropes(config: Config) -> Iterator[Config]:
    """Every rotary embedding that says its type: one for all layers, or one a kind of layer."""
    found = config.get("rope_scaling") or config.get("rope_parameters")
    if isinstance(found, dict):
        ropes = (rope for rope in (found, *found.values()) if isinstance(rope, dict))
        yield from (rope for rope in ropes if {"rope_type", "type"} & rope.keys())


def name_rope(config: Config, rope: Config) -> str:
    """Phi-3 has also called LongRoPE su and yarn."""
    name = str(rope.get("rope_type", rope.get("type")))
    is_phi = config.get("model_type") == "phi3"
    return "longrope" if is_phi and name in {"su", "yarn"} else name


def find_context(config: Config) -> int:
    """How long a sequence may be.

    LongRoPE (arXiv:2402.13753) turns every token of a sequence that is longer than the model's
    first context by other frequencies. In a row with others, and while a sequence grows, no token
    can have both: longer ones are not taken. Dynamic NTK frequencies change beyond
    max_position_embeddings only.
    """
    longest = read_size(config, "max_position_embeddings")
    firsts = [
        find_first_context(config, rope)
        for rope in list_ropes(config)
        if name_rope(config, rope) == "longrope"
    ]
    return min([longest, *firsts])


def find_first_context(config: Config, rope: Config) -> int:
    """Where transformers takes it from, in its order."""
    key = "original_max_position_embeddings"
    if key in config:
        return read_size(config, key)
    if config.get("model_type") == "phi3":
        return PHI3_CONTEXT
    return read_size(rope, key) if key in rope else read_size(config, "max_position_embeddings")


def read_size(config: Config, key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInput(f"config.json says {key} = {value!r}; it must be a number.")
    return value
