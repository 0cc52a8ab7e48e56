"""Models for the engine's tests: the tiny trained one, and random ones of other shapes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers import Qwen3ForCausalLM as Qwen3

from training.engine.core import Engine
from training.engine.lead import Lead
from training.engine.ranks import Plan
from training.types import LoraSpec

RANK_SECONDS = 60.0  # then a rank that waits gives up, and its test fails instead of standing still
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
NUM_EXPERTS = 4  # of a mixture


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


@pytest.fixture(scope="session")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two mixtures of experts whose tokens go to different ones."""
    folder = tmp_path_factory.mktemp("mixtures")
    torch.manual_seed(3)
    qwen = Qwen3MoeConfig(
        **SHAPE, num_experts=NUM_EXPERTS, num_experts_per_tok=2, moe_intermediate_size=16
    )
    mixtral = MixtralConfig(**SHAPE, num_local_experts=NUM_EXPERTS, num_experts_per_tok=3)
    models: dict[str, PreTrainedModel] = {
        "qwen3_moe": Qwen3MoeForCausalLM(qwen),
        "mixtral": MixtralForCausalLM(mixtral),
    }
    for name, model in models.items():
        for parameter in model.parameters():  # routers of new models weigh all experts alike
            torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(folder / name)
    return {name: folder / name for name in models}


@pytest.fixture(params=["qwen3_moe", "mixtral"])
def mixture(request: pytest.FixtureRequest, mixtures: dict[str, Path]) -> Path:
    return mixtures[request.param]


@pytest.fixture
def engine(random_paths: dict[str, Path]) -> Engine:
    """A random Llama with one run, `run`."""
    engine = Engine.load(random_paths["llama"])
    engine.create_adapter("run", LoraSpec(rank=4, seed=1))
    return engine


@pytest.fixture
def stir() -> Callable[[Engine, str], None]:
    """B starts at zero, where half of the gradients are zero too: give it values. Of an embedding
    it is A that does."""

    def stir_adapter(engine: Engine, run: str) -> None:
        generator = torch.Generator().manual_seed(len(run))
        for pair in engine.adapters.by_run[run].pairs.values():
            blank = pair.b if pair.a.any() else pair.a
            noise = torch.randn(blank.shape, generator=generator)
            blank.detach().copy_(0.02 * noise)

    return stir_adapter


@pytest.fixture(scope="module", params=["fsdp", "replicas"])
def lead(request: pytest.FixtureRequest) -> Iterator[Lead]:
    """Two ranks, this process and another one, which hold models together."""
    lead = Lead(Plan(size=2, sharing=request.param, limit_seconds=RANK_SECONDS), fail)
    yield lead
    lead.end()


def fail(why: str) -> None:
    raise AssertionError(why)
