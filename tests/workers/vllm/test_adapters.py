"""Adapters in the real vLLM: each under a name of its own, with others in a batch, and refused."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.vllm_server import MODEL
from tests.workers.vllm.conftest import PROMPT, TOLERANCE, Checkpoints, ask_logprobs, differ
from training.errors import InvalidInput
from training.types import SampleRequest, SamplingParams
from workers.vllm import ModelMissing, SamplingServer

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


async def test_a_new_version_is_another_adapter_under_another_name(
    server: SamplingServer, checkpoints: Checkpoints
) -> None:
    await server.load_adapter("run@1", checkpoints.first, base=MODEL)
    await server.load_adapter("run@1", checkpoints.first, base=MODEL)  # once more changes nothing
    first = checkpoints.score(PROMPT, checkpoints.first)
    assert differ(await ask_logprobs(server, "run@1"), first) < TOLERANCE
    await server.load_adapter("run@2", checkpoints.second, base=MODEL)
    second = checkpoints.score(PROMPT, checkpoints.second)
    assert differ(first, second) > 0.1
    assert differ(await ask_logprobs(server, "run@2"), second) < TOLERANCE
    assert differ(await ask_logprobs(server, "run@1"), first) < TOLERANCE
    assert sorted(await server.list_adapters()) == ["run@1", "run@2"]
    await server.unload_adapter("run@1")
    with pytest.raises(ModelMissing, match="run@1"):
        await ask_logprobs(server, "run@1")
    with pytest.raises(ModelMissing):
        await server.unload_adapter("run@1")
    assert differ(await ask_logprobs(server, "run@2"), second) < TOLERANCE


async def test_base_and_adapters_in_one_batch_do_not_mix(
    server: SamplingServer, checkpoints: Checkpoints
) -> None:
    """vLLM's CPU kernels alone give rows of the base the adapter in the last slot, and break where
    a head's adapter meets several prompts that are scored."""
    folders = {MODEL: None, "one": checkpoints.first, "two": checkpoints.second}
    for name, folder in folders.items():
        if folder:
            await server.load_adapter(name, folder, base=MODEL)
    wanted = [name for name in folders for _ in range(5)]
    prompts = [[*PROMPT, 30 + index] for index in range(len(wanted))]
    params = SamplingParams(max_tokens=12, stop=(), seed=3)
    outputs = await asyncio.gather(
        *(
            server.generate(name, SampleRequest(prompt=prompt, params=params, prompt_logprobs=True))
            for name, prompt in zip(wanted, prompts, strict=True)
        )
    )
    for name, prompt, output in zip(wanted, prompts, outputs, strict=True):
        sample = output.sequences[0]
        expected = checkpoints.score([*prompt, *sample.tokens], folders[name])
        found = [value for value in output.prompt_logprobs or () if value is not None]
        assert differ([*found, *sample.logprobs], expected) < TOLERANCE


async def test_more_adapters_than_slots_are_all_right(
    server: SamplingServer, checkpoints: Checkpoints
) -> None:
    """The server has four slots: requests of others wait their turn."""
    folders = [checkpoints.first, checkpoints.second] * 3
    for index, folder in enumerate(folders):
        await server.load_adapter(f"slot@{index}", folder, base=MODEL)
    found = await asyncio.gather(
        *(ask_logprobs(server, f"slot@{index}") for index in range(len(folders)))
    )
    for logprobs, folder in zip(found, folders, strict=True):
        assert differ(logprobs, checkpoints.score(PROMPT, folder)) < TOLERANCE


def cut_in_half(folder: Path) -> None:
    data = (folder / ADAPTER_FILE).read_bytes()
    (folder / ADAPTER_FILE).write_bytes(data[: len(data) // 2])


def lose_weights(folder: Path) -> None:
    (folder / ADAPTER_FILE).unlink()


def lose_config(folder: Path) -> None:
    (folder / CONFIG_FILE).unlink()


def widen_rank(folder: Path) -> None:
    tensors = {
        name: torch.cat([tensor] * 8, dim=0 if ".lora_A." in name else 1)
        for name, tensor in load_file(folder / ADAPTER_FILE).items()
    }
    save_file(tensors, folder / ADAPTER_FILE)
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"r": 32}))


def take_other_base(folder: Path) -> None:
    tensors = {
        name: torch.cat([tensor] * 2, dim=1 if ".lora_A." in name else 0)
        for name, tensor in load_file(folder / ADAPTER_FILE).items()
    }
    save_file(tensors, folder / ADAPTER_FILE)


def add_layer(folder: Path) -> None:
    tensors = load_file(folder / ADAPTER_FILE)
    for part in ("A", "B"):
        name = f"base_model.model.model.layers.{{}}.mlp.up_proj.lora_{part}.weight"
        tensors[name.format(9)] = tensors[name.format(1)].clone()
    save_file(tensors, folder / ADAPTER_FILE)


def add_embedding(folder: Path) -> None:
    tensors = load_file(folder / ADAPTER_FILE)
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.randn(4, 2048)
    tensors["base_model.model.model.embed_tokens.lora_embedding_B"] = torch.randn(128, 4)
    save_file(tensors, folder / ADAPTER_FILE)
    config = json.loads((folder / CONFIG_FILE).read_text())
    modules = [*config["target_modules"], "embed_tokens"]
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"target_modules": modules}))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (cut_in_half, "is damaged: adapter_model.safetensors cannot be read"),
        (lose_weights, "is damaged: adapter_model.safetensors is missing"),
        (lose_config, "is damaged: adapter_config.json is missing"),
        (widen_rank, "has rank 32: this server was started for ranks up to 16"),
        (take_other_base, "is an adapter of another base model: it has model.layers.0"),
        (add_layer, "is an adapter of another base model: it has model.layers.9.mlp"),
        (add_embedding, "changes model.embed_tokens: this server was started for adapters of"),
        (shutil.rmtree, "is damaged: adapter_config.json is missing"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
async def test_an_adapter_that_cannot_be_served_is_refused_and_the_others_serve_on(
    server: SamplingServer,
    checkpoints: Checkpoints,
    tmp_path: Path,
    damage: Callable[[Path], None],
    text: str,
) -> None:
    await server.load_adapter("good", checkpoints.first, base=MODEL)
    folder = tmp_path / "bad"
    shutil.copytree(checkpoints.first, folder)
    damage(folder)
    with pytest.raises(InvalidInput, match=f"^bad {text}"):
        await server.load_adapter("bad", folder, base=MODEL)
    with pytest.raises(ModelMissing):
        await ask_logprobs(server, "bad")
    assert differ(await ask_logprobs(server, MODEL), checkpoints.score(PROMPT)) < TOLERANCE
    good = checkpoints.score(PROMPT, checkpoints.first)
    assert differ(await ask_logprobs(server, "good"), good) < TOLERANCE
