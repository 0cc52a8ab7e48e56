"""One real vLLM on the CPU for a whole test session, with the tiny model: the fixture `real_vllm`.

tests/conftest.py takes the fixtures in, once: imported elsewhere they would start a second server.
"""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from training.model_files import WEIGHTS_FILE, digest_file, digest_weights
from workers.processes import find_free_port
from workers.vllm import ModelMissing, SamplingServer
from workers.vllm_process import (
    Room,
    Supervised,
    build_vllm_command,
    build_vllm_environment,
    supervise,
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
    """vLLM, and the thread whose loop keeps it running. Its calls come from any loop or none."""

    url: str
    model: str
    path: Path
    digest: str  # of the weights that it was started with
    supervised: Supervised
    loop: asyncio.AbstractEventLoop
    log: Path

    @property
    def incarnation(self) -> str | None:
        return self.supervised.incarnation

    def connect(self) -> SamplingServer:
        """A client for the caller's own event loop; the caller closes it."""
        return SamplingServer(self.url)

    def run(self, work: Coroutine[Any, Any, T], timeout: float = START_SECONDS) -> T:
        """For tests without an event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def wait_until_up(self) -> str:
        return self.run(self.supervised.wait_until_up(START_SECONDS), START_SECONDS + 5)

    async def restore(self) -> None:
        """The weights of the start, no adapters, nothing paused."""
        server = self.supervised.server
        await server.resume()
        facts = await server.describe()
        if facts.digest not in ("", self.digest):
            await server.replace_weights(self.path, digest=self.digest, version="base", mode="keep")
        for name in await server.list_adapters():
            with suppress(ModelMissing):
                await server.unload_adapter(name)


@pytest.fixture(scope="session")
def vllm_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealVllm]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    over = asyncio.Event()
    started: Future[RealVllm] = Future()
    folder = tmp_path_factory.mktemp("vllm")
    keeping = asyncio.run_coroutine_threadsafe(keep_vllm(folder, started, over), loop)
    try:
        yield started.result(START_SECONDS)
    finally:
        loop.call_soon_threadsafe(over.set)
        keeping.result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def keep_vllm(folder: Path, started: "Future[RealVllm]", over: asyncio.Event) -> None:
    port, log = find_free_port(), folder / "vllm.log"
    url = f"http://127.0.0.1:{port}"
    command = build_vllm_command(MODEL, TINY, port=port, python=PYTHON, room=ROOM)
    environment = build_vllm_environment(threads=1)
    async with supervise(command, url=url, environment=environment, log=log) as supervised:
        try:
            await supervised.wait_until_up(START_SECONDS)
        except TimeoutError:
            started.set_exception(AssertionError(f"vLLM did not start:\n{read_end(log)}"))
            return
        started.set_result(
            RealVllm(
                url=url,
                model=MODEL,
                path=TINY,
                digest=digest_weights({WEIGHTS_FILE: digest_file(TINY / WEIGHTS_FILE)}),
                supervised=supervised,
                loop=asyncio.get_running_loop(),
                log=log,
            )
        )
        await over.wait()


def read_end(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


@pytest.fixture
def real_vllm(vllm_process: RealVllm) -> Iterator[RealVllm]:
    """As it was started: what a test has loaded is gone after it."""
    vllm_process.wait_until_up()
    yield vllm_process
    vllm_process.wait_until_up()
    vllm_process.run(vllm_process.restore())
