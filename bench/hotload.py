"""From the end of a step to the first token of its weights on vLLM, and what others notice."""

import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from bench.contest import ROOT
from bench.rows import Row, limit_row, make_row
from bench.serving import READY_SECONDS, open_client
from bench.sft import prepare_model, write_batches
from bench.stack import TINY, serve

SDK = ROOT / ".venv-sdk" / "bin" / "python"
FIREWORKS = ROOT / ".venv-fireworks" / "bin" / "python"
ROUNDS: Mapping[str, int] = {"tiny-chatml-1m": 24, "SmolLM2-135M": 8}
WHOLE_ROUNDS = 6  # at most 8 deltas follow each other
NUM_STEPS = 100  # of the run whose sampler is compared with its trainer again
MOST_MILLISECONDS = 300.0  # from a step of the tiny model to its first token, p95
MOST_DISAGREEMENT = 1e-4  # nats, mean, float32
# Tokens of a neighbour who is served meanwhile.
NUM_STREAMED: Mapping[str, int] = {"tiny-chatml-1m": 400, "SmolLM2-135M": 80}
NUM_QUIET = 3  # streams of it without any load, and as many with loads
PHASES = ("export", "transfer", "load", "probe")
# Also of loads whose weights have given their place to the next ones since.
LOADS = """
import json
from webapp.deployments.models import HotLoad
proven = HotLoad.objects.filter(checkpoint__type="{kind}", mean_difference__isnull=False)
columns = [phase + "_milliseconds" for phase in {phases}]
print(json.dumps([list(each) for each in proven.order_by("id").values_list(*columns)]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the program measured, and the phases of its loads as their rows have them."""

    totals: list[float]
    alone: list[float]
    behind: list[float]
    paths: list[str]
    disagreement: list[float]
    phases: list[list[float]]


def measure() -> list[Row]:
    folders = {"tiny-chatml-1m": TINY, "SmolLM2-135M": prepare_model()}
    rows: list[Row] = []
    os.environ["HONE_SERVING"] = "vllm"
    for name, folder in folders.items():
        with tempfile.TemporaryDirectory() as home, serve(Path(home), {name: folder}) as connection:
            told = run_program(name, folder, connection)
            rows += describe(name, told)
            rows += asyncio.run(measure_neighbour(name, connection, told.paths))
            rows.append(measure_whole(name, connection))
    return rows


def measure_whole(name: str, connection: Path) -> Row:
    """All weights: each load is a delta that takes the place of the last weights on a vLLM."""
    batches = str(connection.with_name("rows.json"))
    program = [str(FIREWORKS), "-m", "bench.hotload_whole", str(connection), name, batches]
    totals = json.loads(run([*program, str(WHOLE_ROUNDS)], connection.parent))["totals"]
    tell_phases(f"{name}, all weights", totals, read_phases(connection, "delta")[-len(totals) :])
    title = f"hotload {name}, all weights: step to first token, p95 against p50"
    return make_row(title, find_p95(totals), median(totals), unit="ms")


def read_phases(connection: Path, kind: str) -> list[list[float]]:
    """Of all proven loads of this kind of checkpoints, in their order."""
    code = LOADS.format(kind=kind, phases=PHASES)
    shell = [sys.executable, "manage.py", "shell", "-v", "0", "-c", code]
    phases: list[list[float]] = json.loads(run(shell, connection.parent))
    return phases


def run_program(name: str, folder: Path, connection: Path) -> Told:
    batches = connection.with_name("rows.json")
    write_batches(folder, batches)
    steps = NUM_STEPS if name == TINY.name else 0
    arguments = [str(connection), name, str(batches), str(ROUNDS[name]), str(steps)]
    told = json.loads(run([str(SDK), "-m", "bench.hotload_sdk", *arguments], connection.parent))
    return Told(phases=read_phases(connection, "adapter"), **told)


def run(command: Sequence[str], home: Path) -> str:
    environment = os.environ | {"HONE_HOME": str(home)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def describe(name: str, told: Told) -> list[Row]:
    title = f"hotload {name}, LoRA: "
    # The first four loads are not counted, and the last one is for the comparison.
    tell_phases(f"{name}, LoRA", told.totals, told.phases[-len(told.totals) - 1 : -1])
    p50, p95 = median(told.totals), find_p95(told.totals)
    behind = title + "a step asked for right behind a save, against a step alone"
    rows = [make_row(behind, median(told.behind), median(told.alone), unit="ms")]
    if name == TINY.name:
        limit = title + "step to first token of its weights, p95"
        rows.append(limit_row(limit, p95, MOST_MILLISECONDS, unit="ms"))
    else:
        rows.append(make_row(title + "step to first token, p95 against p50", p95, p50, unit="ms"))
    return [*rows, *compare_logprobs(title, told)]


def tell_phases(name: str, totals: Sequence[float], loads: Sequence[Sequence[float]]) -> None:
    phases = {each: median(load[at] for load in loads) for at, each in enumerate(PHASES)}
    p50, p95 = median(totals), find_p95(totals)
    words = ", ".join(f"{phase} {value:.1f}" for phase, value in phases.items())
    rest = p50 - sum(phases.values())
    print(f"{name}: p50 {p50:.1f}, p95 {p95:.1f} ms; {words}, asking and first token {rest:.1f}")


def compare_logprobs(title: str, told: Told) -> list[Row]:
    rows = []
    for moment, gap in zip(("before any step", "at the end"), told.disagreement, strict=True):
        name = f"{title}mean |sampler's - trainer's log-probability| {moment}"
        limit = 1e6 * MOST_DISAGREEMENT
        rows.append(limit_row(name, 1e6 * gap, limit, unit="millionths of a nat"))
    return rows


def find_p95(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


async def measure_neighbour(name: str, connection: Path, paths: Sequence[str]) -> list[Row]:
    """The longest wait between two tokens of who is served while others' weights are loaded."""
    told = json.loads(connection.read_text())
    keys = {"authorization": f"Bearer {told['api_key']}"}
    async with open_client(told["url"], keys) as client:
        await stream(client, name)
        quiet, busy = [], []
        shares = split(paths, NUM_QUIET)
        for share in shares:
            quiet.append(max(await stream(client, name)))
            neighbour = asyncio.create_task(stream(client, name))
            await asyncio.sleep(0.2)
            for path in share:
                await ask_one(client, path)
            busy.append(max(await neighbour))
    title = (
        f"hotload {name}: longest gap between two tokens of a neighbour, during loads against not"
    )
    return [make_row(title, median(busy), median(quiet), unit="ms")]


def split(paths: Sequence[str], parts: int) -> Iterator[Sequence[str]]:
    return (paths[number::parts] for number in range(parts))


async def stream(client: httpx.AsyncClient, model: str) -> list[float]:
    """Milliseconds between the pieces of one long answer."""
    body = {
        "model": model,
        "prompt": list(range(10, 42)),
        "max_tokens": NUM_STREAMED[model],
        "stream": True,
        "ignore_eos": True,
    }
    gaps, last = [], time.perf_counter()
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                now = time.perf_counter()
                gaps.append(1000 * (now - last))
                last = now
    return gaps[1:]


async def ask_one(client: httpx.AsyncClient, model: str) -> Any:
    """One token of weights that no server has seen yet."""
    body = {"model": model, "prompt": list(range(10, 26)), "max_tokens": 1}
    answer = await client.post("/v1/completions", json=body, timeout=READY_SECONDS)
    answer.raise_for_status()
    return answer.json()
