"""SFT tokens a second and peak memory of our engine, of TRL's trainer and of a bare loop."""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.contest import ROOT, Contender, compete
from bench.rows import Row, make_row
from bench.sft_rows import FULL, LORA
from training.data.batches import make_batches
from training.data.demo import demo_rows, find_bfcl
from training.data.examples import encode_rows
from training.data.tokenizer import ChatTokenizer
from training.engine.convert import convert, find_smollm2

BATCH_SIZE = 8
NUM_BATCHES = 4
WARMUP, STEPS = 1, 5
EQUAL_TOKENS = 128
MEMORY_TARGET = 0.7
TITLES = {"trl": "TRL SFTTrainer", "bare": "the bare loop"}
THEIRS = str(ROOT / ".venv-bench" / "bin" / "python")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`targets`: of our tokens a second by each other contender's."""

    kind: str
    title: str
    num_tokens: int | None  # of every row: its last ones; None: as long as it is
    targets: Mapping[str, float]


MIXED, EQUAL = {"trl": 1.5, "bare": 0.95}, {"trl": 1.0, "bare": 0.95}
CASES = (
    Case(kind=LORA, title="mixed lengths", num_tokens=None, targets=MIXED),
    Case(kind=LORA, title="equal lengths", num_tokens=EQUAL_TOKENS, targets=EQUAL),
    Case(kind=FULL, title="mixed lengths", num_tokens=None, targets=MIXED),
    Case(kind=FULL, title="equal lengths", num_tokens=EQUAL_TOKENS, targets=EQUAL),
)


def measure_kind(kind: str) -> list[Row]:
    return [row for case in CASES if case.kind == kind for row in measure_case(case)]


measure = partial(measure_kind, LORA)
measure_full = partial(measure_kind, FULL)


def measure_case(case: Case) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        model, rows = prepare_model(), Path(folder) / "rows.json"
        write_batches(model, rows, num_tokens=case.num_tokens)
        contenders = choose_contenders(model, rows, case.kind)
        medians = compete(contenders, warmup=WARMUP, steps=STEPS)
    speeds = [compare_speed(case, name, medians) for name in case.targets]
    return [*speeds, *(compare_memory(case, name, medians) for name in case.targets)]


def prepare_model() -> Path:
    """The demo's model where `make run` keeps it."""
    home = Path(os.environ.get("HONE_HOME", ROOT / ".hone")).resolve()
    folder = home / "models" / "SmolLM2-135M-Instruct"
    folder.parent.mkdir(parents=True, exist_ok=True)
    return convert(find_smollm2(), folder)


def write_batches(model: Path, file: Path, *, num_tokens: int | None = None) -> None:
    """The demo's rows in the order in which its run takes them; lengths from 130 to 280 tokens."""
    encoded = encode_rows(
        list(demo_rows(find_bfcl())), ChatTokenizer.load(model), max_length=8192, overlong="drop"
    )
    batches = make_batches(encoded.examples, batch_size=BATCH_SIZE, num_steps=NUM_BATCHES, seed=0)
    kept = slice(-num_tokens if num_tokens else None, None)
    rows = [
        [
            (
                [*datum.tokens.tolist(), int(datum.inputs["target_tokens"][-1])][kept],
                [False, *(datum.inputs["weights"] != 0).tolist()][kept],
            )
            for datum in batch.data
        ]
        for batch in batches
    ]
    file.write_text(json.dumps(rows))


def choose_contenders(model: Path, rows: Path, kind: str) -> list[Contender]:
    pythons = {"hone": sys.executable, "trl": THEIRS, "bare": THEIRS}
    return [
        Contender(
            name=name, command=[python, "-m", f"bench.sft_{name}", str(model), str(rows), kind]
        )
        for name, python in pythons.items()
    ]


Medians = Mapping[str, Mapping[str, float]]


def compare_speed(case: Case, name: str, medians: Medians) -> Row:
    ours, theirs = (medians[side]["tokens_per_second"] for side in ("hone", name))
    title = name_row(case, "tokens", name)
    return make_row(title, ours, theirs, unit="tokens/s", target=case.targets[name])


def compare_memory(case: Case, name: str, medians: Medians) -> Row:
    """The target is against what people use; the bare loop's peak is there to be seen."""
    ours, theirs = (medians[side]["peak_megabytes"] for side in ("hone", name))
    target = MEMORY_TARGET if name == "trl" else None
    title = name_row(case, "peak memory", name)
    return make_row(title, ours, theirs, unit="MB", target=target, sense="<=")


def name_row(case: Case, what: str, name: str) -> str:
    bench = "sft SmolLM2-135M LoRA" if case.kind == LORA else "full SmolLM2-135M all weights"
    return f"{bench}, {BATCH_SIZE} rows a step, {case.title}: {what} against {TITLES[name]}"
