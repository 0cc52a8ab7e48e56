"""Whole models that the built-in sampling server is given while it runs."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.workers.test_generation import ENDLESS, REQUEST, TINY, wait_for_jobs
from training.engine.generate import Generator
from training.errors import InvalidInput
from workers.generation import App
from workers.residents import Job, Residents, Setup, TurnThread
from workers.room import count_free_bytes, count_model_bytes
from workers.vllm import ModelMissing, SamplingServer


def write_model(folder: Path, seed: int) -> Path:
    """The tiny model with its last layer stirred: it samples something else."""
    shutil.copytree(TINY, folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.3.mlp.down_proj.weight"
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(tensors[name].shape, generator=generator).to(tensors[name].dtype)
    save_file(tensors | {name: tensors[name] + noise}, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "first", 1)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "second", 2)


@pytest.fixture
def residents() -> Residents:
    return Residents(Setup(models={"tiny": TINY}, max_models=2))


@pytest.fixture
async def server(residents: Residents) -> AsyncIterator[SamplingServer]:
    thread = TurnThread(residents, on_death=lambda: None)
    thread.start()
    transport = httpx.ASGITransport(App(thread))
    async with SamplingServer("http://sampler", transport=transport) as server:
        yield server
    await asyncio.to_thread(thread.stop)


def sample_here(folder: Path) -> list[int]:
    generator = Generator.load(folder)
    generator.submit(REQUEST)
    while not (finished := generator.step()):
        pass
    assert not isinstance(finished[0].result, InvalidInput)
    return list(finished[0].result.sequences[0].tokens)


async def sample(server: SamplingServer, model: str) -> list[int]:
    return list((await server.generate(model, REQUEST)).sequences[0].tokens)


async def test_a_whole_model_answers_under_its_own_name_beside_the_base(
    server: SamplingServer, residents: Residents, first: Path
) -> None:
    await server.load_model("ckpt-1", first)
    assert await sample(server, "ckpt-1") == sample_here(first)
    assert await sample(server, "tiny") == sample_here(TINY) != sample_here(first)
    listed = {each["id"]: each["root"] for each in residents.list_models()}
    assert listed == {"tiny": str(TINY), "ckpt-1": str(first)}


async def test_the_longest_unused_leaves_memory_and_is_read_again_when_it_is_asked_for(
    server: SamplingServer, residents: Residents, first: Path, second: Path
) -> None:
    await sample(server, "tiny")
    await server.load_model("ckpt-1", first)
    await server.load_model("ckpt-2", second)
    assert list(residents.residents) == ["ckpt-1", "ckpt-2"]
    assert await sample(server, "tiny") == sample_here(TINY)
    assert list(residents.residents) == ["ckpt-2", "tiny"]
    assert await sample(server, "ckpt-1") == sample_here(first)
    assert list(residents.residents) == ["tiny", "ckpt-1"]


async def test_a_model_waits_for_a_place_until_another_has_answered(
    server: SamplingServer, residents: Residents, first: Path, second: Path
) -> None:
    await server.load_model("ckpt-1", first)
    busy = [asyncio.create_task(server.generate(name, ENDLESS)) for name in ("tiny", "ckpt-1")]
    await wait_for_jobs(residents, 2)
    await server.load_model("ckpt-2", second)
    assert any(task.done() for task in busy)
    assert len(residents.residents) == 2
    await asyncio.gather(*busy)


async def test_a_model_that_was_read_answers_all_that_wait_for_it_before_it_leaves(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    residents = Residents(Setup(models={"tiny": TINY, "first": first}, max_models=1))
    read: list[Path] = []
    load = Generator.load

    def note_and_load(path: Path, **options: Any) -> Generator:
        read.append(path)
        return load(path, **options)

    monkeypatch.setattr(Generator, "load", note_and_load)
    answered: list[str] = []
    for name in ("tiny", "first") * 3:
        note = partial(note_answer, answered, name)
        residents.add(Job(model=name, request=REQUEST, deliver=note))
    while not residents.is_idle:
        residents.take_turn()
    assert answered == ["tiny"] * 3 + ["first"] * 3
    assert read == [TINY, first]


def note_answer(answered: list[str], name: str, _: object) -> None:
    answered.append(name)


async def test_where_memory_is_short_an_idle_model_goes_though_there_are_places(
    first: Path,
) -> None:
    free = [2**40]
    setup = Setup(models={"tiny": TINY}, max_models=8, count_free=lambda _: free[0])
    residents = Residents(setup)
    thread = TurnThread(residents, on_death=lambda: None)
    thread.start()
    transport = httpx.ASGITransport(App(thread))
    async with SamplingServer("http://sampler", transport=transport) as server:
        await sample(server, "tiny")
        free[0] = count_model_bytes(first, torch.float32) - 1
        await server.load_model("ckpt-1", first)
        assert list(residents.residents) == ["ckpt-1"]
        free[0] += 1
        await sample(server, "tiny")
        assert list(residents.residents) == ["ckpt-1", "tiny"]
    await asyncio.to_thread(thread.stop)


async def test_an_unloaded_model_is_gone_and_its_name_means_nothing(
    server: SamplingServer, residents: Residents, first: Path
) -> None:
    await server.load_model("ckpt-1", first)
    await server.unload_model("ckpt-1")
    assert not residents.residents
    with pytest.raises(ModelMissing):
        await sample(server, "ckpt-1")
    with pytest.raises(ModelMissing):
        await server.unload_model("ckpt-1")


async def test_who_is_being_answered_keeps_the_unloaded_model_to_the_end(
    server: SamplingServer, residents: Residents, first: Path
) -> None:
    await server.load_model("ckpt-1", first)
    waiting = asyncio.create_task(server.generate("ckpt-1", ENDLESS))
    await wait_for_jobs(residents, 1)
    await server.unload_model("ckpt-1")
    assert len((await waiting).sequences[0].tokens) == 509
    assert await sample(server, "tiny")
    assert list(residents.residents) == ["tiny"]


async def test_a_name_stands_for_one_model_and_a_base_model_is_not_unloaded(
    server: SamplingServer, first: Path, second: Path
) -> None:
    await server.load_model("ckpt-1", first)
    await server.load_model("ckpt-1", first)
    with pytest.raises(InvalidInput, match="give each version its own name"):
        await server.load_model("ckpt-1", second)
    with pytest.raises(ModelMissing):
        await server.unload_model("tiny")


async def test_a_folder_without_a_model_is_refused_and_the_server_goes_on(
    server: SamplingServer, residents: Residents, tmp_path: Path, first: Path
) -> None:
    with pytest.raises(InvalidInput, match=r"config\.json is missing"):
        await server.load_model("ckpt-1", tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(first, broken)
    (broken / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0no")
    for _ in range(2):
        with pytest.raises(InvalidInput, match="cannot be read"):
            await server.load_model("ckpt-1", broken)
        await sample(server, "tiny")
    assert list(residents.models) == ["tiny"]


async def test_a_server_that_knows_no_whole_models_is_named_as_the_reason() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(404, json={"detail": "Not Found"})

    transport = httpx.MockTransport(answer)
    async with SamplingServer("http://vllm", transport=transport) as server:
        with pytest.raises(InvalidInput, match="served by the built-in server"):
            await server.load_model("ckpt-1", TINY)


def test_a_models_size_is_counted_in_the_type_that_it_is_read_in() -> None:
    sizes = [count_model_bytes(TINY, dtype) for dtype in (torch.bfloat16, torch.float32)]
    assert sizes[1] == pytest.approx(2 * sizes[0], abs=2)
    assert sizes[0] == pytest.approx(1.1 * (TINY / "model.safetensors").stat().st_size, rel=0.01)
    assert count_free_bytes("cpu") > 0
