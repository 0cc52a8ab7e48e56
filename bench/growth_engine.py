"""The engine's side of growth: steps of larger batches, and beside more adapters."""

import json
import sys
from functools import partial
from pathlib import Path

from bench.sft_rows import RANK
from bench.tenants_engine import make_request, time_in_turn, train
from training.engine.core import Engine
from training.types import ForwardBackward, LoraSpec

ROWS = (2, 4, 8, 16, 32)  # of a batch, of 64 tokens each
ADAPTERS = (1, 4, 16, 64)


def make_batch(engine: Engine, num_rows: int) -> ForwardBackward:
    data = [make_request(number, engine.vocab_size).data[0] for number in range(num_rows)]
    return ForwardBackward(data=data, config={"logprobs": "weighted"})


def time_tokens(engine: Engine) -> dict[int, float]:
    batches = [make_batch(engine, rows) for rows in ROWS]
    ways = [partial(train, engine, {"run": batch}, [["run"]]) for batch in batches]
    sizes = [batch.num_tokens for batch in batches]
    return dict(zip(sizes, time_in_turn(ways), strict=True))


def time_adapters(engine: Engine) -> dict[int, float]:
    """The first is the run's own."""
    times, batch = {}, make_batch(engine, ROWS[0])
    for number in ADAPTERS:
        for other in range(len(engine.runs), number):
            engine.create_adapter(f"other-{other}", LoraSpec(rank=4))
        (times[number],) = time_in_turn([partial(train, engine, {"run": batch}, [["run"]])])
    return times


def main(model: str) -> None:
    engine = Engine.load(Path(model))
    engine.create_adapter("run", LoraSpec(rank=RANK))
    measured = {"tokens": time_tokens(engine), "adapters": time_adapters(engine)}
    told = {
        what: {size: 1000 * seconds for size, seconds in times.items()}
        for what, times in measured.items()
    }
    sys.stdout.write(json.dumps(told))


main(*sys.argv[1:])
