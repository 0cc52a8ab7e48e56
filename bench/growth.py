"""How time grows: of a step with its tokens and with adapters, of an operation with those queued.

Told as the exponent of a power law: 1 is in proportion, 0 is not at all.
"""

import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from bench.contest import QUIET, ROOT
from bench.load import MODEL, make_request
from bench.rows import Row, make_row
from bench.sft import prepare_model
from bench.stack import TINY, serve
from bench.wire import PROTOBUF, Address, Wire
from webapp.wire.passes import encode_forward_backward

QUEUED = (10, 100, 1000)
ROUNDS = 5
PROPORTIONAL, CONSTANT = 1.1, 0.1  # the largest exponents that count as such
TITLES = {
    "tokens": ("SmolLM2-135M LoRA: a step, by the tokens of its batch", PROPORTIONAL),
    "adapters": ("SmolLM2-135M LoRA: a step, by the adapters that others hold", CONSTANT),
    "queued": ("tiny-chatml-1m: an operation, by how many wait in the run's log", CONSTANT),
}

Times = Mapping[str, float]  # milliseconds by size, from the smallest up


def measure() -> list[Row]:
    command = [sys.executable, "-m", "bench.growth_engine", str(prepare_model())]
    finished = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **QUIET}, stdout=subprocess.PIPE, check=True
    )
    grown: dict[str, Times] = json.loads(finished.stdout)
    grown["queued"] = measure_queue()
    return [tell_growth(what, times) for what, times in grown.items()]


def tell_growth(what: str, times: Times) -> Row:
    title, target = TITLES[what]
    least, *_, most = times
    told = ", ".join(f"{size}: {milliseconds:.1f} ms" for size, milliseconds in times.items())
    print(f"{what}: {told}")
    return make_row(
        f"growth {title}, {least} to {most}",
        times[most],
        times[least],
        ratio=fit_exponent(times),
        unit="ms (exponent)",
        target=target,
        sense="<=",
    )


def fit_exponent(times: Times) -> float:
    sizes = [math.log(float(size)) for size in times]
    return statistics.linear_regression(sizes, [math.log(each) for each in times.values()]).slope


def measure_queue() -> Times:
    with tempfile.TemporaryDirectory() as home, serve(Path(home), {MODEL: TINY}) as connection:
        told = json.loads(connection.read_text())
        address = Address(url=told["url"], api_key=told["api_key"])
        return asyncio.run(drain_queues(address))


async def drain_queues(address: Address) -> Times:
    """Milliseconds of an operation. Fewer at once are drained more often, for as good a median."""
    wire = Wire(address)
    session = await wire.post("create_session", tags=[], sdk_version="0.38.0")
    opened = {"session_id": session["session_id"], "model_seq_id": 0, "base_model": MODEL}
    promise = await wire.post("create_model", **opened, lora_config={"rank": 8})
    await wire.wait(promise["request_id"])
    model, seq = promise["model_id"], 1
    times = {}
    for number in (QUEUED[0], *QUEUED):  # the first once more: it was the warm-up
        rounds = []
        for _ in range(ROUNDS):
            rounds.append(1000 * await drain(wire, model, seq, number) / number)
            seq += number
        times[str(number)] = statistics.median(rounds)
    wire.close()
    return times


async def drain(wire: Wire, model: str, seq: int, number: int) -> float:
    """Seconds from when all are there until the last has ended."""
    request_id = ""
    # The first comes last: nothing begins before all of them wait.
    for place in (*range(seq + 1, seq + number), seq):
        body = encode_forward_backward(model, place, make_request(place))
        _, answer = await wire.send("forward_backward", body, PROTOBUF)
        if place == seq + number - 1:
            request_id = json.loads(answer)["request_id"]
    started = time.perf_counter()
    await wire.wait(request_id)
    return time.perf_counter() - started
