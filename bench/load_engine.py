"""The engine's side of the load: the clients' pairs in one process, eight runs in one pass."""

import json
import sys
import time

from bench.load import LEARNING_RATE, NUM_CLIENTS, NUM_PAIRS, make_request
from bench.stack import TINY
from training.engine.core import Engine
from training.types import AdamParams, LoraSpec

WARMUP = 5


def main() -> None:
    engine = Engine.load(TINY)
    runs = [f"run-{number}" for number in range(NUM_CLIENTS)]
    for run in runs:
        engine.create_adapter(run, LoraSpec(rank=8))
    for number in range(WARMUP):
        step(engine, runs, number)
    cpu = time.process_time()
    each = [step(engine, runs, number) for number in range(NUM_PAIRS // NUM_CLIENTS)]
    cpu = time.process_time() - cpu
    sys.stdout.write(json.dumps({"each": each, "total": sum(each), "cpu": cpu}))


def step(engine: Engine, runs: list[str], number: int) -> float:
    """Seconds until every run has its gradient and its update."""
    started = time.perf_counter()
    engine.forward_backward({run: make_request(number) for run in runs})
    for run in runs:
        engine.optim_step(run, AdamParams(learning_rate=LEARNING_RATE))
    return time.perf_counter() - started


main()
