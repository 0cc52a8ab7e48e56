"""A contest: every contender is a process, and they take their steps in turn.

In turn, because the machine may be busy with other things: what slows one slows the next too.
The contender's side of the protocol needs nothing but the standard library: it may run in
another virtual environment.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
QUIET = {
    "OMP_WAIT_POLICY": "PASSIVE",  # who waits for its turn must not burn the other's cores
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """`command` is a python with a module of this package and its arguments."""

    name: str
    command: Sequence[str]


class Player:
    """A contender that has loaded its model and waits for the word."""

    def __init__(self, contender: Contender) -> None:
        self.name = contender.name
        self.process = subprocess.Popen(
            contender.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **QUIET},
        )

    def step(self) -> dict[str, float]:
        """One step of training; what the contender measured of it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early: its message is above")
        answer: dict[str, float] = json.loads(line)
        return answer

    def __enter__(self) -> "Player":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


def compete(
    contenders: Sequence[Contender], *, warmup: int, steps: int
) -> Mapping[str, dict[str, float]]:
    """Medians over the steps of what each contender measured."""
    with ExitStack() as stack:
        players = [stack.enter_context(Player(contender)) for contender in contenders]
        rounds = [[player.step() for player in players] for _ in range(warmup + steps)]
    return {
        player.name: take_medians([results[place] for results in rounds[warmup:]])
        for place, player in enumerate(players)
    }


def take_medians(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.median(result[key] for result in results) for key in results[0]}


class Stopwatch:
    """The contender's side: waits for each go, then times what happens up to `stop`."""

    def __init__(self) -> None:
        self.output = sys.stdout
        sys.stdout = sys.stderr  # libraries print; the answers have this line to themselves
        self.started = (0.0, 0.0)
        self.is_warm = False

    def wait(self) -> bool:
        """False: there is no further step."""
        if not sys.stdin.readline():
            return False
        if not self.is_warm:
            forget_peak()
        self.is_warm = True
        self.started = (time.perf_counter(), time.process_time())
        return True

    def stop(self, *, tokens: int, **measured: float) -> None:
        wall, cpu = self.started
        seconds = time.perf_counter() - wall
        measured["seconds"] = seconds
        measured["tokens_per_second"] = tokens / seconds
        measured["peak_megabytes"] = read_peak()
        measured["tokens_per_cpu_second"] = tokens / (time.process_time() - cpu)
        self.output.write(json.dumps(measured) + "\n")
        self.output.flush()


def forget_peak() -> None:
    """What loading took does not count: from here on the peak is that of the steps."""
    Path("/proc/self/clear_refs").write_text("5")


def read_peak() -> float:
    """Megabytes of this process, at their most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
