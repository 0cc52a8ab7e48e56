"""A tiny random instance of every family that is trained here, with each of its peculiarities."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
PARTIAL: dict[str, Any] = {"partial_rotary_factor": 0.5}
WIDE = SHAPE | {"head_dim": 10}  # not the hidden size by the number of heads
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [4.0, 5.0, 6.0],
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 128,
}
GEMMA3_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama-2": lambda: LlamaConfig(**SHAPE | {"num_key_value_heads": 6}),
    "llama-3": lambda: LlamaConfig(**WIDE, rope_parameters=dict(LLAMA3), attention_bias=True),
    "llama-yarn": lambda: LlamaConfig(**SHAPE, rope_parameters=dict(YARN), mlp_bias=True),
    "llama-dynamic": lambda: LlamaConfig(**SHAPE, rope_parameters=dict(DYNAMIC)),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen2-windows": lambda: Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=9, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**WIDE, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**WIDE, sliding_window=9),
    "gemma": lambda: GemmaConfig(**WIDE),
    "gemma-2": lambda: Gemma2Config(
        **WIDE,
        sliding_window=9,
        layer_types=MIXED,
        query_pre_attn_scalar=17,
        attn_logit_softcapping=0.7,
        final_logit_softcapping=1.5,
    ),
    "gemma-3": lambda: Gemma3TextConfig(
        **WIDE,
        sliding_window=9,
        layer_types=MIXED,
        query_pre_attn_scalar=17,
        rope_parameters=deepcopy(GEMMA3_ROPES),
    ),
    "mixtral": lambda: MixtralConfig(
        **WIDE, sliding_window=9, num_local_experts=4, num_experts_per_tok=3
    ),
    "olmo-2": lambda: Olmo2Config(**SHAPE),
    "olmo-3": lambda: Olmo3Config(**SHAPE, sliding_window=9, layer_types=MIXED),
    "phi": lambda: PhiConfig(**SHAPE | PARTIAL),
    "phi-norms": lambda: PhiConfig(**SHAPE | PARTIAL, qk_layernorm=True),
    "phi-3": lambda: Phi3Config(**SHAPE, sliding_window=9),
    "phi-3-longrope": lambda: Phi3Config(
        **SHAPE,
        rope_parameters=dict(LONGROPE),
        original_max_position_embeddings=128,
        tie_word_embeddings=True,
    ),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **WIDE,
        num_experts=5,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        norm_topk_prob=True,
        tie_word_embeddings=True,
    ),
    "qwen3-moe-windows": lambda: Qwen3MoeConfig(
        **WIDE,
        num_experts=4,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        use_sliding_window=True,
        sliding_window=9,
    ),
    "smollm3": lambda: SmolLM3Config(**SHAPE, no_rope_layer_interval=2),
    "granite": lambda: GraniteConfig(
        **SHAPE,
        logits_scaling=3.0,
        embedding_multiplier=2.0,
        residual_multiplier=0.7,
        attention_multiplier=0.3,
    ),
}


def make_model(family: str) -> PreTrainedModel:
    """Biases and norms are random too: at zero and one, their mistakes are not seen."""
    torch.manual_seed(len(family))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(FAMILIES[family]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.06)
    return model


def save_model(family: str, folder: Path) -> Path:
    make_model(family).save_pretrained(folder)
    return folder
