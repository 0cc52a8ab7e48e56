"""The engine's side of the tenants: steps of several runs, in one pass and one after another."""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.sft_rows import LEARNING_RATE, RANK
from bench.tenants import NUM_TENANTS, NUM_TOKENS
from training.engine.core import Engine
from training.types import AdamParams, Datum, ForwardBackward, LoraSpec

WARMUP, STEPS = 1, 7
LEARNED = 16  # tokens of a batch, the last ones


def make_request(number: int, vocab_size: int) -> ForwardBackward:
    tokens = np.random.default_rng(number).integers(100, vocab_size, NUM_TOKENS + 1)
    weights = np.zeros(NUM_TOKENS, np.float32)
    weights[-LEARNED:] = 1 / LEARNED
    inputs: dict[str, Any] = {"target_tokens": tokens[1:], "weights": weights}
    return ForwardBackward(
        data=[Datum(tokens=tokens[:-1], inputs=inputs)], config={"logprobs": "weighted"}
    )


def main(model: str) -> None:
    engine = Engine.load(Path(model))
    requests = {f"run-{i}": make_request(i, engine.vocab_size) for i in range(max(NUM_TENANTS))}
    for run in requests:
        engine.create_adapter(run, LoraSpec(rank=RANK))
    speeds = {}
    for number in NUM_TENANTS:
        runs = list(requests)[:number]
        ways = [
            partial(train, engine, requests, [runs]),
            partial(train, engine, requests, [[run] for run in runs]),
        ]
        speeds[number] = [number * NUM_TOKENS / seconds for seconds in time_in_turn(ways)]
    sys.stdout.write(json.dumps(speeds))


def train(
    engine: Engine, requests: Mapping[str, ForwardBackward], passes: Sequence[Sequence[str]]
) -> None:
    """A step of each run, with those in one pass whose names stand together."""
    for runs in passes:
        engine.forward_backward({run: requests[run] for run in runs})
        for run in runs:
            engine.optim_step(run, AdamParams(learning_rate=LEARNING_RATE))


def time_in_turn(ways: Sequence[Callable[[], None]]) -> list[float]:
    """Medians of the seconds of each."""
    rounds = [[time_once(way) for way in ways] for _ in range(WARMUP + STEPS)]
    return [statistics.median(times) for times in zip(*rounds[WARMUP:], strict=True)]


def time_once(way: Callable[[], None]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


if __name__ == "__main__":
    main(*sys.argv[1:])
