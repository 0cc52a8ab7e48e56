"""The real vLLM is killed, and hangs: whoever waits for it hears of it."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.vllm_server import MODEL, RealVllm
from tests.workers.vllm.conftest import (
    BALLAST,
    PROMPT,
    TOLERANCE,
    Checkpoints,
    ask_logprobs,
    differ,
)
from training.types import SampleRequest, SamplingParams
from workers.vllm import ModelMissing, SamplingServer, ServerLost

ENDLESS = SampleRequest(prompt=[1, 5], params=SamplingParams(max_tokens=500, stop=()))


def find_processes(group: int) -> dict[str, int]:
    """Title -> process id: vLLM names its processes."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                title = (folder / "cmdline").read_bytes().rstrip(b"\0").decode()
                found[title.partition("\0")[0]] = int(folder.name)
        except (OSError, ProcessLookupError):
            continue
    return found


async def test_an_engine_that_hangs_is_found_out_although_the_server_says_it_is_well(
    server: SamplingServer, real_vllm: RealVllm, checkpoints: Checkpoints
) -> None:
    assert await server.is_working()
    worker = find_processes(real_vllm.group)["VLLM::Worker"]
    os.kill(worker, signal.SIGSTOP)
    try:
        waiting = asyncio.create_task(ask_logprobs(server, MODEL))
        assert await server.health()
        assert not await server.is_working(0.5)
        assert not waiting.done()
    finally:
        os.kill(worker, signal.SIGCONT)
    assert await server.is_working()
    assert differ(await waiting, checkpoints.score(PROMPT)) < TOLERANCE


async def test_a_worker_that_is_killed_takes_the_server_with_it_and_the_next_start_is_fresh(
    server: SamplingServer, real_vllm: RealVllm, checkpoints: Checkpoints
) -> None:
    await server.load_adapter("held", checkpoints.first, base=MODEL)
    waiting = asyncio.create_task(server.generate(MODEL, BALLAST))
    streamed = server.stream(MODEL, ENDLESS)
    await anext(streamed)
    group, starts = real_vllm.group, real_vllm.starts
    os.kill(find_processes(group)["VLLM::Worker"], signal.SIGKILL)
    with pytest.raises(ServerLost):
        await waiting
    with pytest.raises(ServerLost):
        async for _ in streamed:
            pass
    assert real_vllm.process is not None
    await asyncio.to_thread(real_vllm.process.wait, 60)  # by itself: whoever keeps it sees an end
    with pytest.raises(ServerLost):
        await server.describe()
    await asyncio.to_thread(real_vllm.restore)
    assert (real_vllm.starts, find_processes(group)) == (starts + 1, {})
    with pytest.raises(ModelMissing):
        await ask_logprobs(server, "held")
    assert differ(await ask_logprobs(server, MODEL), checkpoints.score(PROMPT)) < TOLERANCE
