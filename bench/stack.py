"""A training step of the SDK through the whole stack against the same step of the bare engine."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.contest import ROOT, Contender, compete
from bench.sft import prepare_model, write_batches
from workers.processes import find_free_port

WARMUP = 3
READY_SECONDS = 240
TINY = ROOT / "tests" / "assets" / "tiny-chatml-1m"
# name: steps, and the share of a step that is to be the engine's
MODELS = {"SmolLM2-135M": (8, 0.9), "tiny-chatml-1m": (40, 0.5)}


def measure() -> list[dict[str, Any]]:
    folders = {"SmolLM2-135M": prepare_model(), "tiny-chatml-1m": TINY}
    with tempfile.TemporaryDirectory() as home, serve(Path(home), folders) as connection:
        return [measure_model(name, folders[name], connection) for name in MODELS]


def measure_model(name: str, folder: Path, connection: Path) -> dict[str, Any]:
    rows = connection.with_name("rows.json")
    write_batches(folder, rows)
    steps, target = MODELS[name]
    engine = [sys.executable, "-m", "bench.sft_hone", str(folder), str(rows), "all"]
    sdk = [str(ROOT / ".venv-sdk" / "bin" / "python"), "-m", "bench.stack_sdk"]
    contenders = [
        Contender(name="engine", command=engine),
        Contender(name="sdk", command=[*sdk, str(connection), name, str(rows)]),
    ]
    return make_row(name, target, compete(contenders, warmup=WARMUP, steps=steps))


def make_row(
    name: str, target: float, medians: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    stack, engine = (medians[side]["seconds"] * 1000 for side in ("sdk", "engine"))
    ratio = engine / stack
    return {
        "name": f"stack {name} SDK step, against the bare engine",
        "ours": round(stack, 1),
        "theirs": round(engine, 1),
        "unit": "ms a step",
        "ratio": round(ratio, 2),
        "target": target,
        "met": ratio >= target,
        "command": "make bench",
    }


@contextmanager
def serve(home: Path, folders: Mapping[str, Path]) -> Iterator[Path]:
    """A whole installation on a state folder of its own; yields its connection file."""
    environment = os.environ | {
        "HONE_HOME": str(home),
        "HONE_DEMO": "0",
        "PORT": str(find_free_port()),
    }
    manage = [sys.executable, str(ROOT / "manage.py")]
    quiet = {"env": environment, "stdout": subprocess.DEVNULL}
    subprocess.run([*manage, "migrate"], check=True, **quiet)  # type: ignore[call-overload]
    for name, folder in folders.items():
        add = [*manage, "model", "add", str(folder), "--name", name]
        subprocess.run(add, check=True, **quiet)  # type: ignore[call-overload]
    server = subprocess.Popen([*manage, "up"], **quiet)  # type: ignore[call-overload]
    try:
        yield wait_for_connection(home, server)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def wait_for_connection(home: Path, server: "subprocess.Popen[bytes]") -> Path:
    file = home / "connection.json"
    deadline = time.monotonic() + READY_SECONDS
    while not file.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the installation did not start: see {home / 'logs'}")
        time.sleep(0.2)
    json.loads(file.read_text())
    return file
