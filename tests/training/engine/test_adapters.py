"""Which layers of a model an adapter covers, and how PEFT is told of them."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from tests.training.engine.conftest import SHAPE
from training.engine.adapters import Adapters, Part
from training.errors import InvalidInput
from training.types import LoraSpec

EQUAL_HEADS = {**SHAPE, "num_key_value_heads": 6}


def make_phi() -> PreTrainedModel:
    return PhiForCausalLM(PhiConfig(**EQUAL_HEADS))


def make_phi3() -> PreTrainedModel:
    return Phi3ForCausalLM(Phi3Config(**SHAPE, pad_token_id=0))


def make_neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**EQUAL_HEADS))


def make_opt() -> PreTrainedModel:
    shape = {**EQUAL_HEADS, "ffn_dim": 64, "word_embed_proj_dim": 24}
    return OPTForCausalLM(OPTConfig(**shape))


def name_parts(model: PreTrainedModel) -> dict[str, Part]:
    """Of the first decoder layer, and of what is beside the layers."""
    found = Adapters(model).layers
    return {
        name.rpartition(".")[2]: part
        for name, (part, _) in found.items()
        if ".1." not in name and ".2." not in name
    }


@pytest.mark.parametrize(
    ("make", "attn", "mlp", "embed"),
    [
        (make_phi, "q_proj k_proj v_proj dense", "fc1 fc2", "embed_tokens"),
        (make_phi3, "qkv_proj o_proj", "gate_up_proj down_proj", "embed_tokens"),
        (make_neox, "query_key_value dense", "dense_h_to_4h dense_4h_to_h", "embed_in"),
        # Its layers have no module for the MLP, and there are projections beside the layers.
        (make_opt, "q_proj k_proj v_proj out_proj", "fc1 fc2", "embed_tokens"),
    ],
)
def test_every_linear_of_a_layer_belongs_to_attention_or_to_the_mlp(
    make: Callable[[], PreTrainedModel], attn: str, mlp: str, embed: str
) -> None:
    parts = name_parts(make())
    assert parts == {
        **dict.fromkeys(attn.split(), "attn"),
        **dict.fromkeys(mlp.split(), "mlp"),
        embed: "embed",
        "lm_head": "unembed",
    }


def test_a_name_that_means_other_layers_too_is_written_out() -> None:
    model = make_phi()
    for layer in model.get_submodule("model.layers").children():
        layer.set_submodule("mlp.dense", layer.get_submodule("mlp.fc2"))
        layer.set_submodule("mlp.fc2", nn.Identity())
    adapters = Adapters(model)
    adapters.add("attention", LoraSpec(rank=2, train_mlp=False))
    adapters.add("both", LoraSpec(rank=2))
    written_out = [f"model.layers.{index}.self_attn.dense" for index in range(3)]
    assert adapters.name_modules("attention") == ["k_proj", *written_out, "q_proj", "v_proj"]
    assert adapters.name_modules("both") == ["dense", "fc1", "k_proj", "q_proj", "v_proj"]


def test_a_model_without_an_mlp_is_refused() -> None:
    model = make_phi()
    for layer in model.get_submodule("model.layers").children():
        layer.mlp = nn.Identity()
    with pytest.raises(InvalidInput, match="PhiForCausalLM has no linear layers for attention"):
        Adapters(model)


def test_an_adapter_of_no_part_is_refused() -> None:
    adapters = Adapters(make_phi())
    with pytest.raises(InvalidInput, match="nothing to train"):
        adapters.add("run", LoraSpec(rank=2, train_mlp=False, train_attn=False))


def test_a_fresh_adapter_of_the_embedding_is_that_of_peft() -> None:
    adapters = Adapters(make_phi3())
    adapters.add("run", LoraSpec(rank=2, train_mlp=False, train_attn=False, train_embed=True))
    (pair,) = adapters.by_run["run"].pairs.values()
    assert pair.a.shape == (2, 97)
    assert not pair.a.any()
    assert 0.8 < pair.b.std().item() < 1.2
    assert adapters.by_run["run"].tensors.keys() == {
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.embed_tokens.lora_embedding_B",
    }


def test_the_same_seed_gives_the_same_adapter() -> None:
    adapters = Adapters(make_phi())
    same = [adapters.add(run, LoraSpec(rank=2, seed=5)).values for run in ("one", "two")]
    other = adapters.add("other", LoraSpec(rank=2, seed=6)).values
    assert torch.equal(*same)
    assert not torch.equal(same[0], other)
