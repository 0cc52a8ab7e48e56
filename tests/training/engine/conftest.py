"""Models for the engine's tests: the tiny trained one, and random ones of other shapes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config
from transformers import Qwen3ForCausalLM as Qwen3

from training.engine.core import Engine
from training.types import LoraSpec

TINY = Path(__file__).parents[2] / "assets" / "tiny-chatml-1m"
SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="session")
def tiny_path() -> Path:
    return TINY


@pytest.fixture(scope="session")
def random_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Llama with its own head and a Qwen3 with a tied one, untrained, saved on disk."""
    folder = tmp_path_factory.mktemp("models")
    models: dict[str, PreTrainedModel] = {}
    torch.manual_seed(0)
    models["llama"] = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False))
    models["qwen3"] = Qwen3(Qwen3Config(**SHAPE, tie_word_embeddings=True))
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return {name: folder / name for name in models}


@pytest.fixture(params=["tiny", "llama", "qwen3"])
def model_path(request: pytest.FixtureRequest, random_paths: dict[str, Path]) -> Path:
    return {"tiny": TINY, **random_paths}[request.param]


@pytest.fixture
def engine(random_paths: dict[str, Path]) -> Engine:
    """A random Llama with one run, `run`."""
    engine = Engine.load(random_paths["llama"])
    engine.create_adapter("run", LoraSpec(rank=4, seed=1))
    return engine


@pytest.fixture
def stir() -> Callable[[Engine, str], None]:
    """B starts at zero, where half of the gradients are zero too: give it values."""

    def stir_adapter(engine: Engine, run: str) -> None:
        generator = torch.Generator().manual_seed(len(run))
        for pair in engine.adapters.by_run[run].pairs.values():
            noise = torch.randn(pair.b.shape, generator=generator)
            pair.b.detach().copy_(0.02 * noise)

    return stir_adapter
