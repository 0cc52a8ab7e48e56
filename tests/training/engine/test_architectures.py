"""Models that our pass would compute wrongly are refused when they are loaded, with the reason."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma3Config,
    MambaConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    T5Config,
)

from tests.training.engine.shapes import DYNAMIC, FAMILIES, LONGROPE, SHAPE, save_model
from training.architectures import ARCHITECTURES, inspect_config
from training.engine import families
from training.engine.core import Engine
from training.engine.generate import Generator
from training.engine.logits import IDENTITY
from training.engine.passes import run_pass
from training.errors import InvalidInput
from training.shapes import ModelShape

OTHERS: dict[str, tuple[PreTrainedConfig, str, str]] = {
    "linear attention": (
        Qwen3NextConfig(num_hidden_layers=4),
        "Qwen3NextForCausalLM",
        "has layers of linear_attention",
    ),
    "state space": (MambaConfig(num_hidden_layers=2), "MambaForCausalLM", "keeps a state"),
    "encoder and decoder": (T5Config(), "T5ForConditionalGeneration", "an encoder of its own"),
    "text and images": (
        Gemma3Config(),
        "Gemma3ForConditionalGeneration",
        "takes more than text",
    ),
    "experts": (
        Qwen3MoeConfig(**SHAPE, num_experts=4, mlp_only_layers=[0]),
        "PhimoeForCausalLM",
        "is a mixture of experts",
    ),
    "another one": (PreTrainedConfig(), "GPT2LMHeadModel", "computes in a way"),
}


KEYS = st.sampled_from(
    [
        "architectures",
        "model_type",
        "layer_types",
        "rope_scaling",
        "rope_parameters",
        "rope_type",
        "type",
        "full_attention",
        "original_max_position_embeddings",
        "max_position_embeddings",
        "vocab_size",
        "is_causal",
        "num_experts",
        "num_key_value_heads",
        "head_dim",
        "text_config",
        "vision_config",
        "state_size",
        "mlp_only_layers",
        "decoder_sparse_step",
    ]
)


def write_config(config: PreTrainedConfig, name: str, folder: Path) -> Path:
    config.architectures = [name]
    config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("config", "name", "reason"), OTHERS.values(), ids=OTHERS)
def test_other_kinds_of_models_are_refused_by_name_before_weights_are_read(
    config: PreTrainedConfig, name: str, reason: str, tmp_path: Path
) -> None:
    folder = write_config(config, name, tmp_path)
    with pytest.raises(InvalidInput, match=f"{name} .*{reason}.* trained are .*Qwen3ForCausalLM"):
        Engine.load(folder)
    with pytest.raises(InvalidInput, match=f"{name} .*{reason}"):
        Generator.load(folder)


def make_config(family: str, **changes: Any) -> dict[str, Any]:
    config = FAMILIES[family]().to_dict()
    names = {kind: name for name, kind in ARCHITECTURES.items()}
    changed: dict[str, Any] = {**config, "architectures": [names[config["model_type"]]], **changes}
    return changed


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba', not gemma3_text"),
        ({"layer_types": ["chunked_attention"]}, "layers of chunked_attention"),
        ({"use_bidirectional_attention": True}, "tokens that follow"),
        ({"is_causal": False}, "tokens that follow"),
        ({"rope_scaling": {"type": "spiral"}, "rope_parameters": None}, "by spiral"),
        ({"rope_parameters": {"full_attention": {"rope_type": "spiral"}}}, "by spiral"),
        ({"quantization_config": {"bits": 4}}, "weights are quantized"),
        ({"vocab_size": "many"}, "vocab_size = 'many'"),
        ({"max_position_embeddings": 0}, "max_position_embeddings = 0"),
        ({"architectures": "Gemma3ForCausalLM"}, "names no architecture"),
        ({"architectures": [3]}, "names no architecture"),
    ],
)
def test_a_known_family_in_an_unknown_shape_is_refused(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidInput, match=reason):
        inspect_config(make_config("gemma-3", **changes))


@pytest.mark.parametrize("layers", [{"mlp_only_layers": [1]}, {"decoder_sparse_step": 2}])
def test_a_mixture_with_dense_layers_between_is_refused(layers: dict[str, Any]) -> None:
    config = Qwen3MoeConfig(**SHAPE, num_experts=4).to_dict()
    names = {"architectures": ["Qwen3MoeForCausalLM"]}
    assert inspect_config({**config, **names}).name == "Qwen3MoeForCausalLM"
    with pytest.raises(InvalidInput, match="has layers without experts"):
        inspect_config({**config, **names, **layers})


@pytest.mark.parametrize(
    ("family", "changes", "context"),
    [
        ("llama-3", {}, 256),
        ("llama-dynamic", {}, 256),
        ("phi-3-longrope", {}, 128),
        ("phi-3", {"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 64}, 64),
        ("phi-3", {"rope_scaling": {"type": "yarn"}, "original_max_position_embeddings": 64}, 64),
        ("phi-3", {"rope_scaling": {"type": "su"}}, 256),
        ("llama-yarn", {}, 256),
        ("llama-2", {"rope_scaling": {"rope_type": "longrope"}}, 256),
        ("gemma-3", {"rope_parameters": {"full_attention": LONGROPE}}, 128),
        ("gemma-3", {"rope_parameters": {"sliding_attention": DYNAMIC}}, 256),
        ("gemma-3", {"rope_parameters": ["default"]}, 256),
    ],
)
def test_sequences_end_where_their_length_would_turn_all_their_positions(
    family: str, changes: dict[str, Any], context: int
) -> None:
    changes = {"rope_parameters": None, **changes} if "rope_scaling" in changes else changes
    assert inspect_config(make_config(family, **changes)).context_tokens == context


def test_engine_and_sampler_keep_to_the_context_of_the_config(tmp_path: Path) -> None:
    folder = save_model("phi-3-longrope", tmp_path)
    assert Engine.load(folder).context == 128
    assert Generator.load(folder).context == 128


def test_a_config_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"has no config\.json"):
        Engine.load(tmp_path)
    for broken in ("{", "[" * 100_000):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(InvalidInput, match=r"config\.json cannot be read"):
            Engine.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InvalidInput, match="does not hold a JSON object"):
        Engine.load(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | st.sampled_from(["su", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(family=st.sampled_from(sorted(FAMILIES)), changes=st.dictionaries(KEYS, JSON, max_size=4))
def test_any_config_is_taken_or_refused(family: str, changes: dict[str, Any]) -> None:
    config = make_config(family, **changes)
    with suppress(InvalidInput):
        found = inspect_config(config)
        assert found.name in ARCHITECTURES
        assert 0 < found.context_tokens <= 256
        assert found.vocab_size == config["vocab_size"]
    with suppress(InvalidInput):
        assert ModelShape.from_config(config).num_parameters > 0


def test_a_pass_that_differs_from_transformers_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would, if a config had a cap that is not known here."""
    folder = save_model("gemma-2", tmp_path)

    def run_uncapped(model: Any, adapters: Any, *rest: Any) -> tuple[torch.Tensor, int]:
        adapters.logit_rule = IDENTITY
        return run_pass(model, adapters, *rest)

    monkeypatch.setattr(families, "run_pass", run_uncapped)
    with pytest.raises(InvalidInput, match="Gemma2ForCausalLM computes in a way"):
        Engine.load(folder)


def test_the_check_leaves_the_model_with_our_attention(tmp_path: Path) -> None:
    engine = Engine.load(save_model("gemma-2", tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gemma2"
    assert engine.model.config._attn_implementation == "hone"
