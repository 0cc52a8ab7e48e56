"""SFT tokens a second of our engine against peft with padded batches and TRL's SFTTrainer."""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.contest import ROOT, Contender, compete
from training.data.batches import make_batches
from training.data.demo import demo_rows, find_bfcl
from training.data.examples import encode_rows
from training.data.tokenizer import ChatTokenizer
from training.engine.convert import convert, find_smollm2

BATCH_SIZE = 8
NUM_BATCHES = 4
WARMUP, STEPS = 1, 5
TARGETS = {"peft": 1.5, "trl": 1.5}
TITLES = {"peft": "peft, padded batches", "trl": "TRL SFTTrainer"}
COMMAND = "make bench"


def measure() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        model, rows = prepare_model(), Path(folder) / "rows.json"
        write_batches(model, rows)
        medians = compete(choose_contenders(model, rows), warmup=WARMUP, steps=STEPS)
    return [make_row(name, medians) for name in TARGETS]


def prepare_model() -> Path:
    """The demo's model where `make run` keeps it."""
    home = Path(os.environ.get("HONE_HOME", ROOT / ".hone")).resolve()
    folder = home / "models" / "SmolLM2-135M-Instruct"
    folder.parent.mkdir(parents=True, exist_ok=True)
    return convert(find_smollm2(), folder)


def write_batches(model: Path, file: Path) -> None:
    """The demo's rows in the order in which its run takes them; lengths from 90 to 320 tokens."""
    encoded = encode_rows(
        list(demo_rows(find_bfcl())), ChatTokenizer.load(model), max_length=8192, overlong="drop"
    )
    batches = make_batches(encoded.examples, batch_size=BATCH_SIZE, num_steps=NUM_BATCHES, seed=0)
    rows = [
        [
            (
                [*datum.tokens.tolist(), int(datum.inputs["target_tokens"][-1])],
                [False, *(datum.inputs["weights"] != 0).tolist()],
            )
            for datum in batch.data
        ]
        for batch in batches
    ]
    file.write_text(json.dumps(rows))


def choose_contenders(model: Path, rows: Path) -> list[Contender]:
    theirs = str(ROOT / ".venv-bench" / "bin" / "python")
    return [
        Contender(
            name=name, command=[python, "-m", f"bench.sft_{name}", str(model), str(rows), *more]
        )
        for name, python, more in (
            ("hone", sys.executable, ["weighted"]),
            ("peft", theirs, []),
            ("trl", theirs, []),
        )
    ]


def make_row(name: str, medians: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    ours, theirs = (medians[side]["tokens_per_second"] for side in ("hone", name))
    ratio = ours / theirs
    return {
        "name": f"sft SmolLM2-135M LoRA {BATCH_SIZE} rows a step, against {TITLES[name]}",
        "ours": round(ours, 1),
        "theirs": round(theirs, 1),
        "unit": "tokens/s",
        "ratio": round(ratio, 2),
        "target": TARGETS[name],
        "met": ratio >= TARGETS[name],
        "command": COMMAND,
    }
