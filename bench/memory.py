"""A step's peak memory as predicted from config.json, and as a process of its own took it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bench.contest import QUIET, ROOT
from bench.rows import Row, make_row
from bench.sft import prepare_model
from training.memory import DeviceKind, Memory
from training.shapes import ModelShape
from training.types import LoraSpec

TINY = ROOT / "tests" / "assets" / "tiny-chatml-1m"
MEGABYTE = 1e6
WITHIN = 0.2  # of what is measured

Case = tuple[str, LoraSpec, Sequence[int]]
TINY_CASES: Sequence[Case] = [
    ("rank 8, 4 rows of 512", LoraSpec(rank=8), [512] * 4),
    ("rank 8, 64 rows of 64", LoraSpec(rank=8), [64] * 64),
]
CASES: Sequence[Case] = [
    ("rank 4, 1 row of 512", LoraSpec(rank=4), [512]),
    ("rank 64, 1 row of 512", LoraSpec(rank=64), [512]),
    ("rank 16, 1 row of 2,048", LoraSpec(rank=16), [2048]),
    ("rank 16, 32 rows of 64", LoraSpec(rank=16), [64] * 32),
    ("rank 16 and the head, 8 rows of 256", LoraSpec(rank=16, train_unembed=True), [256] * 8),
    ("rank 16, 2 rows of 2,048", LoraSpec(rank=16), [2048] * 2),
    ("all weights, 8 rows of 128", LoraSpec(rank=0), [128] * 8),
]


def measure() -> list[Row]:
    rows = [measure_case(TINY, "tiny", case) for case in TINY_CASES]
    model = prepare_model()
    return rows + [measure_case(model, "SmolLM2-135M", case) for case in CASES]


def measure_case(model: Path, name: str, case: Case) -> Row:
    title, spec, lengths = case
    device: DeviceKind = "cuda" if torch.cuda.is_available() else "cpu"
    memory = Memory(shape=ModelShape.read(model), spec=spec, device=device)
    predicted = memory.predict(sum(lengths)).total
    measured = run_alone(model, spec, lengths)
    row = make_row(
        f"memory {name}, {title}: predicted against measured",
        predicted / MEGABYTE,
        measured / MEGABYTE,
        unit="MB",
    )
    row["target"], row["sense"] = 1.0, "~"
    row["met"] = abs(predicted / measured - 1) <= WITHIN
    return row


def run_alone(model: Path, spec: LoraSpec, lengths: Sequence[int]) -> int:
    """Nothing that another case has left in a process may count."""
    command = [sys.executable, "-m", "bench.memory_hone", str(model)]
    arguments = [json.dumps(asdict(spec)), json.dumps(list(lengths))]
    finished = subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env={**os.environ, **QUIET},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(finished.stdout)
