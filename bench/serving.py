"""Sampling through Hone's API against the same vLLM server asked directly, side by side."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx

from bench.contest import ROOT
from bench.rows import Row, make_row
from bench.sft import prepare_model
from bench.stack import TINY, serve

CONCURRENT = (1, 16, 64)
LEAST_RATIO = 0.9
NUM_TOKENS = 64  # of each answer
NUM_PROMPT = 48
TURNS = 3  # each side's, in turns: the machine is the same for both
READY_SECONDS = 240.0
# Requests of a turn: some seconds of work for the server.
REQUESTS: Mapping[str, Mapping[int, int]] = {
    "tiny-chatml-1m": {1: 12, 16: 96, 64: 192},
    "SmolLM2-135M": {1: 2, 16: 16, 64: 64},
}
FIND_SERVER = (
    "from webapp.deployments.models import Replica\n"
    "found = Replica.objects.filter(engine='vllm', status='ready', base_model__names__name={!r})\n"
    "print(found.get().url)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A server that is asked: ours or vLLM's own."""

    name: str
    client: httpx.AsyncClient
    model: str

    async def ask(self, number: int) -> int:
        """How many tokens came."""
        prompt = [(7 * number + 13 * at) % 900 + 3 for at in range(NUM_PROMPT)]
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": NUM_TOKENS,
            "ignore_eos": True,
        }
        answer = await self.client.post("/v1/completions", json=body)
        answer.raise_for_status()
        return int(answer.json()["usage"]["completion_tokens"])


def measure() -> list[Row]:
    folders = {"tiny-chatml-1m": TINY, "SmolLM2-135M": prepare_model()}
    rows = []
    for name, folder in folders.items():
        os.environ["HONE_SERVING"] = "vllm"
        with tempfile.TemporaryDirectory() as home, serve(Path(home), {name: folder}) as connection:
            rows += asyncio.run(measure_model(name, connection))
    return rows


async def measure_model(name: str, connection: Path) -> list[Row]:
    told = json.loads(connection.read_text())
    async with AsyncExitStack() as stack:
        keys = {"authorization": f"Bearer {told['api_key']}"}
        ours = Side(name="ours", client=open_client(told["url"], keys), model=name)
        await stack.enter_async_context(ours.client)
        await ours.ask(0)  # which starts the server
        url = find_server(name, connection.parent)
        theirs = Side(name="vllm", client=open_client(url, {}), model=name)
        await stack.enter_async_context(theirs.client)
        return [await compare(name, ours, theirs, number) for number in CONCURRENT]


def open_client(url: str, headers: Mapping[str, str]) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(
        base_url=url, headers=headers, limits=limits, timeout=READY_SECONDS, trust_env=False
    )


def find_server(name: str, home: Path) -> str:
    command = [sys.executable, str(ROOT / "manage.py"), "shell", "-v", "0", "-c"]
    environment = os.environ | {"HONE_HOME": str(home)}
    found = subprocess.run(
        [*command, FIND_SERVER.format(name)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return found.stdout.strip()


async def compare(name: str, ours: Side, theirs: Side, concurrent: int) -> Row:
    speeds: dict[str, list[float]] = {ours.name: [], theirs.name: []}
    for turn in range(TURNS + 1):
        for side in (ours, theirs) if turn % 2 else (theirs, ours):
            speed = await load(side, concurrent, REQUESTS[name][concurrent], turn)
            if turn:  # the first one warms up
                speeds[side.name].append(speed)
    ratios = [mine / other for mine, other in zip(*speeds.values(), strict=True)]
    return make_row(
        f"serving {name}, {concurrent} concurrent: through Hone's API, against vLLM's own server",
        *(median(each) for each in speeds.values()),
        unit="tokens/s",
        ratio=median(ratios),
        target=LEAST_RATIO,
    )


async def load(side: Side, concurrent: int, num_requests: int, turn: int) -> float:
    """Tokens a second of `concurrent` clients that each ask again when they are answered."""
    numbers = iter(range(turn * num_requests, (turn + 1) * num_requests))
    began = time.perf_counter()

    async def ask_on() -> int:
        return sum([await side.ask(number) for number in numbers])

    tokens: list[int] = await asyncio.gather(*(ask_on() for _ in range(concurrent)))
    return sum(tokens) / (time.perf_counter() - began)
