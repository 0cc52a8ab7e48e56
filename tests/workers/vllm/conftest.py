"""The real server's client, checkpoints to load into it, and the engine that says what is right."""

import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.vllm_server import TINY, RealVllm
from training.engine.core import Engine
from training.engine.generate import Generator
from training.errors import InvalidInput
from training.model_files import WEIGHTS_FILE, digest_file, digest_weights
from training.types import LoraSpec, SampleRequest, SamplingParams
from workers.vllm import SamplingServer

PROMPT = [1, 5, 9, 400, 33, 700, 12, 1999, 64, 128, 7]
TOLERANCE = 1e-3  # nats, of float32

# Beside another request it makes a step take long: a client that waits for its turn on a busy
# machine is not late for what it does in the other's middle.
BALLAST = SampleRequest(
    prompt=[1, 9], num_samples=64, params=SamplingParams(max_tokens=500, stop=())
)

Score = Callable[..., list[float]]


@dataclass(slots=True, kw_only=True)
class Checkpoints:
    """`first` and `second` are adapters, the second one of the output head too.

    `other` is a whole model that shares no weight's value.
    """

    home: Path
    first: Path
    second: Path
    other: Path
    other_digest: str
    generators: dict[Path, Generator] = field(default_factory=dict)

    def score(
        self, tokens: Sequence[int], adapter: Path | None = None, whole: Path = TINY
    ) -> list[float]:
        """The engine's log-probabilities of tokens[1:]."""
        if whole not in self.generators:
            self.generators[whole] = Generator.load(whole)
        generator = self.generators[whole]
        if adapter and adapter.name not in generator.loaded:
            generator.load_adapter(adapter.name, adapter)
        request = SampleRequest(
            prompt=tokens, params=SamplingParams(max_tokens=1), prompt_logprobs=True
        )
        generator.submit(request, adapter=adapter.name if adapter else None)
        while not (finished := generator.step()):
            pass
        assert not isinstance(finished[0].result, InvalidInput)
        return [value for value in finished[0].result.prompt_logprobs or () if value is not None]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    home = tmp_path_factory.mktemp("checkpoints")
    engine = Engine.load(TINY)
    for seed, name in enumerate(("first", "second")):
        engine.create_adapter(name, LoraSpec(rank=4, seed=seed, train_unembed=name == "second"))
        generator = torch.Generator().manual_seed(seed)
        for pair in engine.adapters.by_run[name].pairs.values():
            pair.b.detach().copy_(0.1 * torch.randn(pair.b.shape, generator=generator))
        engine.save_weights(name, home / name, optimizer=False)
    digest = write_whole(home / "other", seed=5)
    return Checkpoints(
        home=home,
        first=home / "first",
        second=home / "second",
        other=home / "other",
        other_digest=digest,
    )


def write_whole(folder: Path, *, seed: int, drop: str = "", cut: str = "") -> str:
    """All weights stirred, the ones of the embedding too, which the output head shares."""
    folder.mkdir()
    for file in TINY.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copyfile(file, folder / file.name)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in load_file(TINY / WEIGHTS_FILE).items():
        noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std()
        tensors[name] = (tensor.float() + 0.3 * noise).to(tensor.dtype)
    if drop:
        del tensors[drop]
    if cut:
        tensors[cut] = tensors[cut][:-1].contiguous()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return digest_whole(folder)


def digest_whole(folder: Path) -> str:
    return digest_weights({WEIGHTS_FILE: digest_file(folder / WEIGHTS_FILE)})


@pytest.fixture
async def server(real_vllm: RealVllm) -> AsyncIterator[SamplingServer]:
    async with real_vllm.connect() as server:
        yield server


async def ask_logprobs(
    server: SamplingServer, model: str, tokens: Sequence[int] = PROMPT
) -> list[float]:
    """What the server says of tokens[1:]."""
    params = SamplingParams(max_tokens=1, temperature=0.0)
    request = SampleRequest(prompt=tokens, params=params, prompt_logprobs=True)
    output = await server.generate(model, request)
    return [value for value in output.prompt_logprobs or () if value is not None]


def differ(first: Sequence[float], second: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(first, second, strict=True))
