"""What sampling servers are started with, vLLM and our own, and how they are ended."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

END_SECONDS = 15.0

INSIDE_VLLM = Path(__file__).parent / "inside_vllm"
VLLM_MODULE = "vllm.entrypoints.launchers.api_server.entry"  # `vllm serve` fails on the CPU build
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank may be
MAX_SAMPLES = 512  # of one request: vLLM refuses more than it may run at once
MAX_LOGPROBS = 1003  # the likeliest of each place, and what is told beside them
ADAPTED_MODULES = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "lm_head",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What vLLM sets memory aside for."""

    max_rank: int = 64  # of an adapter; each slot has the size of the largest
    num_slots: int = 8  # adapters in one batch; requests of others wait their turn
    max_kept: int = 64  # adapters in memory; others are read again from their folders
    kv_cache_bytes: int | None = None  # None: what is left of the device's memory
    memory_share: float | None = None  # of a GPU's memory, weights and all

    def describe(self) -> list[str]:
        words = ["--enable-lora", "--max-loras", str(self.num_slots)]
        words += ["--max-cpu-loras", str(max(self.max_kept, self.num_slots))]
        words += ["--max-lora-rank", str(find_max_rank(self.max_rank))]
        words += ["--lora-target-modules", *ADAPTED_MODULES]
        if self.kv_cache_bytes is not None:
            words += ["--kv-cache-memory-bytes", str(self.kv_cache_bytes)]
        if self.memory_share is not None:
            words += ["--gpu-memory-utilization", str(self.memory_share)]
        return words


def kill_group(process: asyncio.subprocess.Process) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


async def end_group(process: asyncio.subprocess.Process) -> None:
    """Terminate the leader, wait, then kill whatever of its group is left."""
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(END_SECONDS):
                await process.wait()
        except TimeoutError:
            pass
    kill_group(process)


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


def build_vllm_command(
    model: str,
    path: Path,
    *,
    port: int,
    python: Path = Path(".venv-vllm/bin/python"),
    device: str = "cpu",
    room: Room = Room(),
) -> list[str]:
    """vLLM's command line: one base model, known as `model`, and adapters of it."""
    command = [
        str(python),
        "-P",
        "-m",
        VLLM_MODULE,
    ]  # -P: the working folder is no place of modules
    command += ["--model", str(path), "--served-model-name", model]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--enable-scale-out", "--enable-prompt-tokens-details"]
    command += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", str(MAX_LOGPROBS)]
    command += ["--return-tokens-as-token-ids", "--max-num-seqs", str(MAX_SAMPLES)]
    command += ["--worker-extension-cls", "hone_vllm_extension.HoneWorker"]
    command += ["--weight-transfer-config", json.dumps({"backend": "checkpoint"})]
    command += room.describe()
    if device == "cpu":
        return [*command, "--dtype", "float32", "--enforce-eager"]
    return [*command, "--dtype", "bfloat16"]


def find_max_rank(rank: int) -> int:
    """The least of vLLM's settings that holds it."""
    return next((each for each in VLLM_RANKS if each >= rank), VLLM_RANKS[-1])


def build_vllm_environment(*, device: str = "cpu", threads: int | None = None) -> dict[str, str]:
    """What vLLM is started with beside its command line; nothing of it reaches for a network."""
    environment = {
        "PYTHONPATH": str(INSIDE_VLLM),
        "VLLM_SERVER_DEV_MODE": "1",  # /pause, /update_weights, /collective_rpc
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # the extension changes what the first one samples with
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "3600",  # our side closes idle connections, and before it
    }
    if device == "cpu":
        # Eager alone still compiles the ranks of log-probabilities, for half a minute.
        environment |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment
