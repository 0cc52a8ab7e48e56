"""Speaks to sampling servers over HTTP, vLLM or our own, and keeps one of our own running."""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import httpx

from training.errors import InvalidInput
from training.types import SampleOutput, SampleRequest
from workers.vllm_wire import StreamedToken, build_body, read_event, read_output

logger = logging.getLogger(__name__)

HEALTH_SECONDS = 5.0
END_SECONDS = 15.0
WELL_SECONDS = 30.0  # a server that ran this long had started well: the next wait is short again
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
ALREADY_LOADED = "already been loaded"  # vLLM's words; a name stands for one adapter for ever


class ModelMissing(Exception):  # noqa: N818 - an answer to act on: load the adapter, ask again
    """The server does not know the model: it has restarted, or the name was unloaded."""


class ServerLost(Exception):  # noqa: N818 - the request may be repeated when it is back
    """The server could not be reached, or broke while it answered."""


class SamplingServer:
    """An async client of one server. Closed with `aclose`, or used as a context manager."""

    def __init__(self, url: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        # No read timeout: a long sample is not a lost one, and a dead server closes the socket.
        timeout = httpx.Timeout(None, connect=HEALTH_SECONDS)
        limits = httpx.Limits(max_connections=None)
        self.client = httpx.AsyncClient(
            base_url=url, timeout=timeout, limits=limits, transport=transport, trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self.client.aclose()

    async def health(self) -> bool:
        try:
            answer = await self.client.get("/health", timeout=HEALTH_SECONDS)
        except httpx.TransportError:
            return False
        return answer.status_code == 200

    async def generate(self, model: str, request: SampleRequest) -> SampleOutput:
        """`model` is a base model's name or an adapter's. Cancelling it cancels the request."""
        answer = await self._post("/inference/v1/generate", build_body(model, request))
        return read_output(answer, request)

    async def stream(
        self, model: str, request: SampleRequest
    ) -> AsyncGenerator[StreamedToken, None]:
        """Tokens as they are made. Close the generator to cancel the request."""
        body = build_body(model, request) | {"stream": True}
        try:
            async with self.client.stream("POST", "/inference/v1/generate", json=body) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                check_answer(answer)
                async for line in answer.aiter_lines():
                    for token in read_event(line):
                        yield token
        except httpx.TransportError as error:
            raise ServerLost(f"the sampling server is lost: {error!r}") from error

    async def load_adapter(self, name: str, path: str | Path, *, base: str | None = None) -> None:
        """Loading what is loaded changes nothing. `base` matters where a server has several."""
        body = {"lora_name": name, "lora_path": str(path)}
        try:
            await self._post("/v1/load_lora_adapter", body | ({"base_model": base} if base else {}))
        except InvalidInput as error:
            if ALREADY_LOADED not in str(error):
                raise

    async def unload_adapter(self, name: str) -> None:
        """Raises ModelMissing where the server does not have it."""
        await self._post("/v1/unload_lora_adapter", {"lora_name": name})

    async def load_model(self, name: str, path: str | Path) -> None:
        """A whole model, on the built-in server. Loading what is loaded changes nothing."""
        try:
            await self._post("/v1/load_model", {"model_name": name, "model_path": str(path)})
        except ModelMissing:
            raise InvalidInput(
                "This sampling server holds one model and takes adapters of it alone, as vLLM does:"
                " checkpoints of all weights are served by the built-in server."
            ) from None

    async def unload_model(self, name: str) -> None:
        """Raises ModelMissing where the server does not have it."""
        await self._post("/v1/unload_model", {"model_name": name})

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        try:
            answer = await self.client.post(path, json=body)
        except httpx.TransportError as error:
            raise ServerLost(f"the sampling server is lost: {error!r}") from error
        check_answer(answer)
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        return answer.json() if is_json else None


def check_answer(answer: httpx.Response) -> None:
    if answer.status_code == 200:
        return
    message = read_message(answer)
    if answer.status_code == 404:
        raise ModelMissing(message)
    if answer.status_code in (400, 422):
        raise InvalidInput(message)
    raise ServerLost(f"the sampling server answered {answer.status_code}: {message}")


def read_message(answer: httpx.Response) -> str:
    try:
        said = answer.json()
    except ValueError:
        return answer.text
    error = said.get("error", said) if isinstance(said, dict) else said
    return str(error.get("message", error) if isinstance(error, dict) else error)


@dataclass(slots=True, kw_only=True)
class Supervised:
    """A server that is kept running. A new `incarnation` has forgotten all adapters."""

    server: SamplingServer
    command: Sequence[str]
    environment: Mapping[str, str]
    incarnation: str | None = None  # None: not up now
    pid: int | None = None
    is_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_until_up(self, timeout: float | None = None) -> str:
        """The incarnation that answers."""
        async with asyncio.timeout(timeout):
            while self.incarnation is None:
                await self.is_up.wait()
        return self.incarnation

    async def keep_running(self) -> None:
        """Until cancelled. Any exit is a crash: vLLM ends with code 0 when it dies."""
        wait = FIRST_WAIT_SECONDS
        while True:
            began = time.monotonic()
            code = await self._run_once()
            ran_well = time.monotonic() - began > WELL_SECONDS
            wait = FIRST_WAIT_SECONDS if ran_well else min(2 * wait, LONGEST_WAIT_SECONDS)
            logger.warning("The sampling server ended with %s; again in %.1f s", code, wait)
            await asyncio.sleep(wait)

    async def _run_once(self) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "workers.watched",
            *self.command,
            stdin=asyncio.subprocess.PIPE,  # held open: workers.watched ends when we do
            env=dict(self.environment),
            start_new_session=True,
        )
        self.pid = process.pid
        announce = asyncio.create_task(self._announce())
        try:
            return await process.wait()
        finally:
            announce.cancel()
            self.incarnation = None
            self.is_up.clear()
            await end_group(process)

    async def _announce(self) -> None:
        while not await self.server.health():
            await asyncio.sleep(0.1)
        self.incarnation = uuid4().hex
        self.is_up.set()


async def end_group(process: asyncio.subprocess.Process) -> None:
    """Terminate the leader, wait, then kill whatever of its group is left."""
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(END_SECONDS):
                await process.wait()
        except TimeoutError:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@asynccontextmanager
async def supervise(
    command: Sequence[str], *, url: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Supervised]:
    """Keep `command`, which serves `url`, running inside the block; end it after."""
    async with SamplingServer(url) as server:
        supervised = Supervised(
            server=server, command=command, environment=build_environment(environment)
        )
        task = asyncio.create_task(supervised.keep_running())
        try:
            yield supervised
        finally:
            task.cancel()
            await asyncio.wait([task])


def build_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """OpenMP threads sleep while they wait: spinning ones take the cores from everybody else."""
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **(extra or {})}


def build_command(
    models: Mapping[str, Path],
    *,
    port: int,
    device: str = "cpu",
    threads: int | None = None,
    max_models: int = 2,
) -> list[str]:
    """The built-in server's command line."""
    named = [part for name, path in models.items() for part in ("--model", f"{name}={path}")]
    command = [sys.executable, "-m", "workers.generation", *named]
    command += ["--port", str(port), "--device", device, "--max-models", str(max_models)]
    return command + (["--threads", str(threads)] if threads else [])
