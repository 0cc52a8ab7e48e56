"""What sampling servers are started with."""

from pathlib import Path

import httpx
import pytest

from workers.vllm import SamplingServer
from workers.vllm_process import (
    INSIDE_VLLM,
    Room,
    build_vllm_command,
    build_vllm_environment,
    find_max_rank,
)


def build(device: str, room: Room) -> list[str]:
    return build_vllm_command("m", Path("/models/m"), port=9, device=device, room=room)


def read_option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_a_cpu_computes_in_float32_without_a_compiler_and_a_gpu_in_bfloat16_with_one() -> None:
    slow, fast = build("cpu", Room()), build("cuda", Room())
    assert (read_option(slow, "--dtype"), "--enforce-eager" in slow) == ("float32", True)
    assert (read_option(fast, "--dtype"), "--enforce-eager" in fast) == ("bfloat16", False)
    assert "TORCHDYNAMO_DISABLE" in build_vllm_environment(device="cpu")
    assert "TORCHDYNAMO_DISABLE" not in build_vllm_environment(device="cuda")


def test_vllm_is_for_this_machine_alone_and_finds_the_extension_and_nothing_else_of_ours() -> None:
    command, environment = build("cpu", Room()), build_vllm_environment(threads=2)
    assert (read_option(command, "--host"), read_option(command, "--port")) == ("127.0.0.1", "9")
    assert "-P" in command
    module, _, name = read_option(command, "--worker-extension-cls").partition(".")
    assert environment["PYTHONPATH"] == str(INSIDE_VLLM)
    assert f"class {name}:" in (INSIDE_VLLM / f"{module}.py").read_text()
    assert not (INSIDE_VLLM / "__init__.py").exists()
    assert environment["OMP_NUM_THREADS"] == "2"


def test_room_is_made_for_adapters_and_for_the_cache_that_is_asked_for() -> None:
    command = build("cpu", Room(max_rank=20, num_slots=3, max_kept=1, kv_cache_bytes=4096))
    assert read_option(command, "--max-lora-rank") == "32"
    assert (read_option(command, "--max-loras"), read_option(command, "--max-cpu-loras")) == (
        "3",
        "3",
    )
    assert read_option(command, "--kv-cache-memory-bytes") == "4096"
    assert "--kv-cache-memory-bytes" not in build("cuda", Room())


@pytest.mark.parametrize(("rank", "found"), [(1, 1), (2, 8), (16, 16), (65, 128), (4096, 512)])
def test_the_largest_rank_is_one_that_vllm_knows(rank: int, found: int) -> None:
    assert find_max_rank(rank) == found


async def test_a_version_that_was_not_tested_is_said() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        is_version = request.url.path == "/version"
        return httpx.Response(200, json={"version": "0.99"}) if is_version else httpx.Response(404)

    transport = httpx.MockTransport(answer)
    async with SamplingServer("http://sampler", transport=transport) as server:
        facts = await server.describe()
    assert (facts.version, facts.has_extension, facts.digest) == ("0.99", False, "")
    assert "This is vLLM 0.99; Hone was tested with 0.32.0" in facts.warning


async def test_a_server_that_has_no_version_is_the_built_in_one() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(404))
    async with SamplingServer("http://sampler", transport=transport) as server:
        facts = await server.describe()
        assert (await server.read_stats()).describe()["sampled_tokens"] == 0
    assert (facts.engine, facts.warning) == ("built_in", "")
