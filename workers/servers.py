"""Starts sampling servers, each in a process group of its own, and says why one has ended."""

import asyncio
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from django.conf import settings

from webapp.deployments.models import Replica
from webapp.deployments.wanted import Wanted
from webapp.fleet.models import BaseModel
from workers.hotload import in_database
from workers.preparation import CannotStart, check_vllm
from workers.processes import find_free_port
from workers.vllm_process import (
    Room,
    build_command,
    build_environment,
    build_vllm_command,
    build_vllm_environment,
    end_group,
)
from workers.whole_folders import find_restored, remove_restored

NVIDIA = Path("/dev/nvidiactl")
TAIL_BYTES = 64_000
DETAIL_CHARACTERS = 300
OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|MemoryError|cannot allocate memory|No available memory"
    r"|less than desired (GPU|CPU) memory|can't allocate",
    re.IGNORECASE,
)
COMPLAINT = re.compile(r"^\W*(?:\(\S+ pid=\d+\)\s*)*((?:\w+\.)*\w*(?:Error|Exception): .+)$")

Engine = Replica.Engine


class Launched(Protocol):
    """A server that was started. It may not answer yet."""

    @property
    def url(self) -> str: ...

    @property
    def pid(self) -> int | None: ...

    async def wait(self) -> str:
        """Until it has ended: why, in a sentence."""

    async def end(self) -> None:
        """It, and everything that it has started."""


@dataclass(slots=True, kw_only=True)
class Elsewhere:
    """A server that somebody else starts and ends."""

    url: str
    pid: int | None = None

    async def wait(self) -> str:
        return await asyncio.Future()

    async def end(self) -> None:
        return


@dataclass(slots=True, kw_only=True)
class ServerProcess:
    """The leader of a process group, `workers.watched`, which ends when we do."""

    url: str
    process: asyncio.subprocess.Process
    log: Path
    log_start: int  # where in the log this start of it begins

    @property
    def pid(self) -> int | None:
        return self.process.pid

    async def wait(self) -> str:
        code = await self.process.wait()
        return explain_end(code, read_tail(self.log, self.log_start), self.log)

    async def end(self) -> None:
        await end_group(self.process)


async def launch(wanted: Wanted, place: int = 0) -> Launched:
    """`place`: its number among the servers that run, from 0: they take turns with the devices."""
    if wanted.engine == Engine.EXTERNAL:
        return Elsewhere(url=wanted.url)
    # What earlier starts of this server were given lies there for nobody.
    await asyncio.to_thread(remove_restored, find_restored(wanted.name))
    port = find_free_port()
    if wanted.engine == Engine.VLLM:
        command, environment = build_vllm(wanted, port), describe_vllm(place)
        return await start_process(wanted.name, command, port, environment)
    command = await in_database(build_built_in, port)
    return await start_process(wanted.name, command, port, {})


def build_built_in(port: int) -> list[str]:
    models = list_models()
    if not models:
        raise CannotStart("There is no base model to serve: add one.")
    return build_command(models, port=port, max_models=settings.SAMPLING_MODELS)


def build_vllm(wanted: Wanted, port: int) -> list[str]:
    model, python = wanted.base_model, settings.VLLM_PYTHON
    assert model is not None  # each vLLM holds one
    check_vllm()
    if not Path(model.path, "config.json").exists():
        raise CannotStart(f"The base model {model.name} is not at {model.path} any more.")
    device = find_device()
    if device == "cpu":
        room = Room(max_rank=wanted.max_rank, kv_cache_bytes=settings.VLLM_CACHE_MIB * 2**20)
    else:
        share = settings.VLLM_MEMORY_PERCENT / 100
        room = Room(max_rank=wanted.max_rank, memory_share=share)
    return build_vllm_command(
        model.name, Path(model.path), port=port, python=python, device=device, room=room
    )


def describe_vllm(place: int) -> dict[str, str]:
    environment, devices = build_vllm_environment(device=find_device()), settings.VLLM_DEVICES
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
    return environment


def find_device() -> str:
    return "cuda" if NVIDIA.exists() else "cpu"


def list_models() -> dict[str, Path]:
    models = BaseModel.objects.prefetch_related("names")
    return {model.name: Path(model.path) for model in models}


async def start_process(
    name: str, command: Sequence[str], port: int, environment: Mapping[str, str]
) -> ServerProcess:
    log = Path(settings.HONE_HOME) / "logs" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "workers.watched",
            *command,
            stdin=asyncio.subprocess.PIPE,  # held open: workers.watched ends when we do
            stdout=output,
            stderr=output,
            cwd=settings.ROOT,
            env=build_environment(environment),
            start_new_session=True,
        )
        log_start = output.tell()
    return ServerProcess(
        url=f"http://127.0.0.1:{port}", process=process, log=log, log_start=log_start
    )


def read_tail(log: Path, start: int) -> str:
    with log.open("rb") as stream:
        end = stream.seek(0, 2)
        stream.seek(max(start, end - TAIL_BYTES))
        return stream.read().decode(errors="replace")


def explain_end(code: int, said: str, log: Path) -> str:
    """Any end is a crash: vLLM ends with code 0 when it dies."""
    complaints = [match[1] for line in said.splitlines() if (match := COMPLAINT.match(line))]
    if code in (-signal.SIGKILL, 256 - signal.SIGKILL) and not complaints:
        why = "was killed, as the system does where memory runs out"
    elif OUT_OF_MEMORY.search(said):
        why = "ran out of memory"
    else:
        why = f"ended with code {code}"
    detail = f": {complaints[-1][:DETAIL_CHARACTERS]}" if complaints else ""
    return f"The server {why}{detail}. Its log: {log}"
