"""Exports of a mixture's adapter go through the cookbook's tools, and come out as our own files."""

import subprocess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from tests.e2e.cookbook.cookbook import PYTHON
from training.engine.core import Engine
from training.types import LoraSpec

SCRIPT = Path(__file__).parents[1] / "scripts" / "cookbook" / "experts.py"
SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}


def test_the_cookbook_makes_of_an_export_what_peft_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE)).save_pretrained(tmp_path / "base")
    engine = Engine.load(tmp_path / "base")
    engine.create_adapter("run", LoraSpec(rank=3, alpha=6.0, train_unembed=True))
    assert engine.joins_experts("run")
    for pair in engine.adapters.by_run["run"].pairs.values():
        pair.b.detach().normal_()
    engine.save_weights("run", tmp_path / "ours", optimizer=False)
    engine.export_weights("run", tmp_path / "export", base_name="base", card="A card.")
    told = subprocess.run(
        [PYTHON, SCRIPT, tmp_path / "base", tmp_path / "export", tmp_path / "peft"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    theirs, ours = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("peft", "ours")
    )
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        assert torch.equal(theirs[name], tensor)
