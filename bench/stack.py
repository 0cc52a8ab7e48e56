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

from bench.contest import ROOT, Contender, compete
from bench.rows import Row, limit_row, make_row
from bench.sft import prepare_model, write_batches
from bench.sft_rows import LORA
from workers.processes import find_free_port

WARMUP = 3
READY_SECONDS = 240
TINY = ROOT / "tests" / "assets" / "tiny-chatml-1m"
STEPS = {"SmolLM2-135M": 8, "tiny-chatml-1m": 40}
LARGEST_RATIO = 1.1  # of a step of the larger model
MOST_MILLISECONDS = 15.0  # that a step of the tiny one takes longer


def measure() -> list[Row]:
    folders = {"SmolLM2-135M": prepare_model(), "tiny-chatml-1m": TINY}
    with tempfile.TemporaryDirectory() as home, serve(Path(home), folders) as connection:
        return [measure_model(name, folders[name], connection) for name in STEPS]


def measure_model(name: str, folder: Path, connection: Path) -> Row:
    rows = connection.with_name("rows.json")
    write_batches(folder, rows)
    engine = [sys.executable, "-m", "bench.sft_hone", str(folder), str(rows), LORA, "all"]
    sdk = [str(ROOT / ".venv-sdk" / "bin" / "python"), "-m", "bench.stack_sdk"]
    contenders = [
        Contender(name="engine", command=engine),
        Contender(name="sdk", command=[*sdk, str(connection), name, str(rows)]),
    ]
    return compare(name, compete(contenders, warmup=WARMUP, steps=STEPS[name]))


def compare(name: str, medians: Mapping[str, Mapping[str, float]]) -> Row:
    """By a share where the engine's part is long, by milliseconds where it is hardly anything."""
    stack, engine = (medians[side]["seconds"] * 1000 for side in ("sdk", "engine"))
    title = f"stack {name}, a step of the SDK: "
    if name == TINY.name:
        print(f"{name}: {stack:.1f} ms through the stack, {engine:.1f} ms the bare engine")
        title += "beyond the bare engine"
        return limit_row(title, stack - engine, MOST_MILLISECONDS, unit="ms")
    title += "against the bare engine"
    return make_row(title, stack, engine, unit="ms", target=LARGEST_RATIO, sense="<=")


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
