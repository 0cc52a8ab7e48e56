"""Where the time of our SFT step goes, operator by operator: `python -m bench profile`."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from bench.sft import prepare_model, write_batches
from bench.sft_datum import to_datum
from bench.sft_rows import LEARNING_RATE, RANK, read_batches
from training.engine.core import Engine
from training.types import AdamParams, Datum, ForwardBackward, LoraSpec

OPERATORS = 14


def tell() -> None:
    """Prints the operators that took most processor time themselves, of the second step on."""
    step = open_step()
    step()
    with profile(activities=[ProfilerActivity.CPU]) as taken:
        step()
        step()
    averages = taken.key_averages()
    total = sum(each.self_cpu_time_total for each in averages)
    averages = sorted(averages, key=lambda each: each.self_cpu_time_total, reverse=True)
    for each in averages[:OPERATORS]:
        share = each.self_cpu_time_total / total
        print(f"{share:6.1%}  {each.count:6d} calls  {each.key}", flush=True)


def open_step() -> Callable[[], None]:
    """One step of a rank-16 adapter on the demo's mixed rows."""
    with tempfile.TemporaryDirectory() as folder:
        model, rows = prepare_model(), Path(folder) / "rows.json"
        write_batches(model, rows)
        data = [to_datum(row) for row in read_batches(rows)[0]]
    engine = Engine.load(model)
    engine.create_adapter("run", LoraSpec(rank=RANK))
    return partial(make_step, engine, data)


def make_step(engine: Engine, data: list[Datum]) -> None:
    request = ForwardBackward(data=data, config={"logprobs": "weighted"})
    engine.forward_backward({"run": request})
    engine.optim_step("run", AdamParams(learning_rate=LEARNING_RATE))
