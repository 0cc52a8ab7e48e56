"""Many clients at once: 2,000 parked samples beside 200 sessions, and 8 training loops."""

import asyncio
import json
import os
import resource
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.contest import QUIET, ROOT
from bench.rows import Row, limit_row, make_row
from bench.stack import TINY, serve
from bench.wire import PROTOBUF, Address, Wire
from training.types import Datum, ForwardBackward
from webapp.wire.passes import encode_forward_backward

MODEL = "tiny-chatml-1m"
NUM_SAMPLES, NUM_SESSIONS = 2000, 200
BEAT_EVERY, BEATS = 10.0, 6  # of each session: a minute
LIMIT_P50, LIMIT_P99 = 10.0, 250.0  # milliseconds of a heartbeat
NUM_CLIENTS, NUM_PAIRS = 8, 1000  # pairs of all clients together
AT_ONCE = 50  # submissions, as the SDK's pool has them
LEARNING_RATE = 1e-4
PATIENCE = 240.0  # for all answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What the system says of one of the installation's processes."""

    pid: int

    @property
    def num_threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    @property
    def megabytes(self) -> float:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure() -> list[Row]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), {MODEL: TINY}) as connection:
        home = Path(folder)
        told = json.loads(connection.read_text())
        address = Address(url=told["url"], api_key=told["api_key"])
        web = Process(pid=find_web_process(address))
        waiting = asyncio.run(measure_waiting(address, home, web))
        steps = asyncio.run(measure_steps(address, web, Process(pid=find_worker(home, "gpu"))))
    return waiting + compare_steps(steps, run_engine())


async def measure_waiting(address: Address, home: Path, web: Process) -> list[Row]:
    idle = web.megabytes, web.num_threads
    sessions = [await open_session(address) for _ in range(NUM_SESSIONS)]
    sampler = find_worker(home, "sampler")
    os.kill(sampler, signal.SIGSTOP)  # nothing is answered until the heartbeats are counted
    try:
        parked, watching = await park(address, sessions[0])
        beats = await asyncio.gather(*(beat(address, *each) for each in enumerate(sessions)))
        busy = web.megabytes, web.num_threads
    finally:
        os.kill(sampler, signal.SIGCONT)
    started = time.perf_counter()
    async with asyncio.timeout(PATIENCE):
        answers = await asyncio.gather(*parked)
        num_heard = await watching
    seconds = time.perf_counter() - started
    assert (len(answers), num_heard) == (NUM_SAMPLES, NUM_SAMPLES)
    print(
        f"2,000 samples were answered within {seconds:.1f} s; the web process grew from"
        f" {idle[0]:.0f} to {busy[0]:.0f} MB and from {idle[1]} to {busy[1]} threads."
    )
    milliseconds = sorted(1000 * each for times in beats for each in times)
    name = f"heartbeat of {NUM_SESSIONS} sessions beside {NUM_SAMPLES} parked samples"
    return [
        limit_row(f"load p50 {name}", statistics.median(milliseconds), LIMIT_P50, unit="ms"),
        limit_row(f"load p99 {name}", quantile(milliseconds, 0.99), LIMIT_P99, unit="ms"),
        limit_row("load memory of the web process meanwhile", busy[0], 1000.0, unit="MB"),
    ]


async def open_session(address: Address) -> str:
    wire = Wire(address)
    answer = await wire.post("create_session", tags=[], sdk_version="0.38.0")
    wire.close()
    return str(answer["session_id"])


async def park(
    address: Address, session: str
) -> tuple[list[asyncio.Task[bytes]], asyncio.Task[int]]:
    """Every sample is asked for, and waits with a connection of its own; one watches all."""
    opener = Wire(address)
    fields = {"session_id": session, "sampling_session_seq_id": 0, "base_model": MODEL}
    opened = await opener.post("create_sampling_session", **fields)
    gate = asyncio.Semaphore(AT_ONCE)

    async def submit(number: int) -> asyncio.Task[bytes]:
        wire = Wire(address)
        async with gate:
            promise = await wire.post(
                "asample",
                sampling_session_id=opened["sampling_session_id"],
                seq_id=number,
                num_samples=1,
                prompt={"chunks": [{"type": "encoded_text", "tokens": [5, 6, 7, 8]}]},
                sampling_params={"max_tokens": 4, "seed": number},
            )
        return asyncio.create_task(close_after(wire, wire.wait(promise["request_id"])))

    parked = list(await asyncio.gather(*(submit(number) for number in range(NUM_SAMPLES))))
    return parked, asyncio.create_task(watch(opener, opened["sampling_session_id"]))


async def watch(wire: Wire, sampler: str) -> int:
    """The SDK's other way to wait: one poll for all samples of a client. How many have ended."""
    target = {"type": "sampling_session", "sampling_session_id": sampler, "cloned_sampler_id": 0}
    num_ended = cursor = 0
    while num_ended < NUM_SAMPLES:
        news = await wire.post("retrieve_futures", target=target, prev_cursor=cursor)
        num_ended, cursor = num_ended + len(news["completions"]), news["cursor"]
    wire.close()
    return num_ended


async def close_after(wire: Wire, answer: Awaitable[bytes]) -> bytes:
    try:
        return await answer
    finally:
        wire.close()


async def beat(address: Address, number: int, session: str) -> list[float]:
    """Seconds of each heartbeat; the sessions take turns within the ten seconds."""
    await asyncio.sleep(BEAT_EVERY * number / NUM_SESSIONS)
    times = []
    for _ in range(BEATS):
        wire = Wire(address)  # the server closes what was silent for five seconds
        started = time.perf_counter()
        await wire.post("session_heartbeat", session_id=session)
        times.append(time.perf_counter() - started)
        wire.close()
        await asyncio.sleep(BEAT_EVERY - times[-1])
    return times


def find_worker(home: Path, kind: str) -> int:
    with sqlite3.connect(f"file:{home / 'hone.sqlite3'}?mode=ro", uri=True) as database:
        (pid,) = database.execute("SELECT pid FROM fleet_worker WHERE kind = ?", [kind]).fetchone()
    return int(pid)


def find_web_process(address: Address) -> int:
    command = f"--port\0{address.url.rsplit(':', 1)[1]}".encode()
    lines = {path: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
    return next(
        int(path.parent.name)
        for path, line in lines.items()
        if b"webapp.asgi:application" in line and command in line
    )


def make_request(number: int) -> ForwardBackward:
    tokens = np.random.default_rng(number).integers(4, 500, 17)
    inputs: dict[str, Any] = {"target_tokens": tokens[1:], "weights": np.ones(16, np.float32)}
    return ForwardBackward(data=[Datum(tokens=tokens[:-1], inputs=inputs)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Seconds of every step of every client, of all together, and of the processors."""

    each: Sequence[float]
    total: float
    cpu: float


async def measure_steps(address: Address, web: Process, gpu: Process) -> Steps:
    models = [await open_model(address) for _ in range(NUM_CLIENTS)]
    await asyncio.gather(*(train(address, model, 1, 5) for model in models))  # warm
    started, cpu = time.perf_counter(), (web.cpu_seconds, gpu.cpu_seconds)
    of_each = NUM_PAIRS // NUM_CLIENTS
    times = await asyncio.gather(*(train(address, model, 11, of_each) for model in models))
    total = time.perf_counter() - started
    used = web.cpu_seconds - cpu[0], gpu.cpu_seconds - cpu[1]
    print(
        f"A step took {1000 * used[0] / NUM_PAIRS:.1f} ms of processor in the web process and"
        f" {1000 * used[1] / NUM_PAIRS:.1f} ms in the gpu worker."
    )
    each = [seconds for client in times for seconds in client]
    return Steps(each=each, total=total, cpu=sum(used))


async def open_model(address: Address) -> str:
    session = await open_session(address)
    wire = Wire(address)
    fields = {"session_id": session, "model_seq_id": 0, "base_model": MODEL}
    promise = await wire.post("create_model", **fields, lora_config={"rank": 8})
    await wire.wait(promise["request_id"])
    wire.close()
    return str(promise["model_id"])


async def train(address: Address, model: str, first_seq: int, num_steps: int) -> list[float]:
    """As the SDK does: both are submitted, then both are waited for at once."""
    one, other = Wire(address), Wire(address)
    times = []
    for seq in range(first_seq, first_seq + 2 * num_steps, 2):
        body = encode_forward_backward(model, seq, make_request(seq))
        started = time.perf_counter()
        _, answer = await one.send("forward_backward", body, PROTOBUF)
        gradient = json.loads(answer)["request_id"]
        adam = {"learning_rate": LEARNING_RATE}
        update = await one.post("optim_step", model_id=model, seq_id=seq + 1, adam_params=adam)
        await asyncio.gather(one.wait(gradient), other.wait(update["request_id"]))
        times.append(time.perf_counter() - started)
    one.close()
    other.close()
    return times


def run_engine() -> Steps:
    """The same pairs in a process that has nothing but the engine."""
    finished = subprocess.run(
        [sys.executable, "-m", "bench.load_engine"],
        cwd=ROOT,
        env={**os.environ, **QUIET},
        stdout=subprocess.PIPE,
        check=True,
    )
    return Steps(**json.loads(finished.stdout))


def compare_steps(ours: Steps, engine: Steps) -> list[Row]:
    print(f"{1 - engine.cpu / ours.cpu:.0%} of that is not the engine's.")
    name = f"of {NUM_PAIRS} steps by {NUM_CLIENTS} clients at once, against the bare engine"
    measures: Sequence[tuple[str, Callable[[Steps], float], float]] = (
        ("p50", lambda steps: 1000 * statistics.median(steps.each), 0.1),
        ("p95", lambda steps: 1000 * quantile(sorted(steps.each), 0.95), 0.05),
        ("mean", lambda steps: 1000 * steps.total / NUM_PAIRS * NUM_CLIENTS, 0.1),
        ("processor time", lambda steps: 1000 * steps.cpu / NUM_PAIRS, 0.15),
    )
    return [
        make_row(
            f"load {what} {name}",
            read(ours),
            read(engine),
            ratio=read(engine) / read(ours),
            unit="ms a step",
            target=target,
        )
        for what, read, target in measures
    ]


def quantile(ascending: Sequence[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, round(share * len(ascending)))]
