"""Models that our pass would compute wrongly are refused when they are loaded, with the reason."""

from pathlib import Path

import pytest
import torch
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.training.engine.conftest import SHAPE
from training.engine.core import Engine
from training.errors import InvalidInput
from training.types import LoraSpec


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def test_scaled_logits_are_noticed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=8.0, initializer_range=0.5))
    with pytest.raises(InvalidInput, match="GraniteForCausalLM computes its logits in a way"):
        Engine.load(save(model, tmp_path))


def test_sliding_windows_are_refused(tmp_path: Path) -> None:
    config = Qwen3Config(**SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(InvalidInput, match="layers with full_attention, sliding_attention"):
        Engine.load(save(Qwen3ForCausalLM(config), tmp_path))


def test_mistral_with_a_window_is_refused_and_without_one_trained(tmp_path: Path) -> None:
    wide = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None))
    engine = Engine.load(save(wide, tmp_path / "wide"))
    engine.create_adapter("run", LoraSpec(rank=2))
    assert engine.runs == ("run",)
    narrow = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8))
    with pytest.raises(InvalidInput, match="only full attention can be trained"):
        Engine.load(save(narrow, tmp_path / "narrow"))


def test_a_mixture_of_experts_is_refused(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(**SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    with pytest.raises(InvalidInput, match="mixture of experts"):
        Engine.load(save(Qwen3MoeForCausalLM(config), tmp_path))
