"""One real vLLM on the CPU for a whole test session, with the tiny model: the fixture `real_vllm`.

tests/conftest.py takes the fixtures in, once: imported elsewhere they would start a second server.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from training.model_files import WEIGHTS_FILE, digest_file, digest_weights
from workers.processes import find_free_port
from workers.vllm import ModelMissing, SamplingServer
from workers.vllm_process import (
    Room,
    build_environment,
    build_vllm_command,
    build_vllm_environment,
)

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
TINY = ROOT / "tests" / "assets" / "tiny-chatml-1m"
MODEL = "tiny/chat"
START_SECONDS = 300  # half a minute of a core, and cores are shared
ROOM = Room(max_rank=16, num_slots=4, kv_cache_bytes=256 * 2**20)


@dataclass(slots=True, kw_only=True)
class RealVllm:
    """vLLM in a process group of its own, on one port however often it starts."""

    log: Path
    model: str = MODEL
    path: Path = TINY
    port: int = field(default_factory=find_free_port)
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def digest(self) -> str:
        """Of the weights that it was started with."""
        return digest_weights({WEIGHTS_FILE: digest_file(self.path / WEIGHTS_FILE)})

    @property
    def group(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def connect(self) -> SamplingServer:
        """A client for the caller's own event loop; the caller closes it."""
        return SamplingServer(self.url)

    def start(self) -> None:
        """Returns when it answers."""
        command = build_vllm_command(
            self.model, self.path, port=self.port, python=PYTHON, room=ROOM
        )
        self.starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "workers.watched", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=build_environment(build_vllm_environment(threads=1)),
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            said = self.log.read_text(errors="replace")[-4000:]
            assert self.is_running, f"vLLM ended before it answered:\n{said}"
            assert time.monotonic() < deadline, f"vLLM did not start:\n{said}"
            time.sleep(0.2)

    def answers(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/health", trust_env=False).status_code == 200
        return False

    def end(self) -> None:
        """It, and whatever it has started."""
        if self.process is None:
            return
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()
        self.process = None

    def restore(self) -> None:
        """As it was started: its own weights, no adapters, nothing paused."""
        if self.is_running and self.answers():
            run(self._restore())
        else:
            self.end()
            self.start()

    async def _restore(self) -> None:
        async with self.connect() as server:
            await server.resume()
            facts = await server.describe()
            if facts.digest not in ("", self.digest):
                await server.replace_weights(
                    self.path, digest=self.digest, version="base", mode="keep"
                )
            for name in await server.list_adapters():
                with suppress(ModelMissing):
                    await server.unload_adapter(name)


def run(work: Coroutine[Any, Any, T]) -> T:
    """In a thread of its own: the caller's may have a loop already."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@pytest.fixture(scope="session")
def vllm_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealVllm]:
    vllm = RealVllm(log=tmp_path_factory.mktemp("vllm") / "vllm.log")
    try:
        vllm.start()
        yield vllm
    finally:
        vllm.end()


@pytest.fixture
def real_vllm(vllm_process: RealVllm) -> RealVllm:
    """As it was started, whatever the test before has done to it."""
    vllm_process.restore()
    return vllm_process
