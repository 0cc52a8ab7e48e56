"""What two steps of our engine take at their peak, in a process that does nothing else."""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from bench.contest import ROOT, forget_peak
from training.engine.core import Engine
from training.types import AdamParams, Datum, ForwardBackward, LoraSpec

TINY = ROOT / "tests" / "assets" / "tiny-chatml-1m"


def train(path: Path, spec: LoraSpec, lengths: list[int]) -> None:
    is_gpu = torch.cuda.is_available()
    engine = Engine.load(
        path,
        device="cuda" if is_gpu else "cpu",
        dtype=torch.bfloat16 if is_gpu else torch.float32,
        token_budget=sum(lengths),
    )
    engine.create_adapter("run", spec)
    start_measuring()
    for seed in range(2):
        engine.forward_backward({"run": make_request(lengths, engine.vocab_size, seed)})
        engine.optim_step("run", AdamParams())


def make_request(lengths: list[int], vocab_size: int, seed: int) -> ForwardBackward:
    generator = np.random.default_rng(seed)
    rows = [generator.integers(0, vocab_size, length + 1) for length in lengths]
    return ForwardBackward(
        data=[Datum(tokens=row[:-1], inputs={"target_tokens": row[1:]}) for row in rows]
    )


def start_measuring() -> None:
    """What loading took does not count."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    forget_peak()


def read_status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def main(model: str, spec: str, lengths: str) -> None:
    train(TINY, LoraSpec(rank=4), [64])  # what libraries keep for themselves comes before
    before = read_status("VmRSS")
    train(Path(model), LoraSpec(**json.loads(spec)), json.loads(lengths))
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = read_status("VmHWM") - before
    sys.stdout.write(f"{peak}\n")


main(*sys.argv[1:])
