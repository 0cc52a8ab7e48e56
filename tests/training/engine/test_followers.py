"""Ranks live and die together, whichever of them is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.engine.leading import CODE

ROOT = Path(__file__).parents[3]
SECONDS = 60.0
LISTENS, LOOPBACK = "0A", "0100007F"

Process = subprocess.Popen[str]


@pytest.fixture(scope="module")
def leading(tiny_path: Path) -> Iterator[list[Process]]:
    """Two of them, which start at the same time."""
    command = [sys.executable, "-m", "tests.training.engine.leading", str(tiny_path)]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_followers(process: Process) -> list[int]:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    lists = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(pid) for each in lists for pid in each.read_text().split()]


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" not in status.read_text()
    except OSError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + SECONDS
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"left over: {left}"
        time.sleep(0.05)


def list_listeners(pid: int) -> set[str]:
    """Addresses that a process waits for connections at, as /proc/net writes them."""
    sockets = {
        link.removeprefix("socket:[").removesuffix("]")
        for file in Path(f"/proc/{pid}/fd").iterdir()
        if (link := str(file.readlink())).startswith("socket:[")
    }
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return {
        line[1].partition(":")[0] for line in lines if line[3] == LISTENS and line[9] in sockets
    }


def test_a_killed_follower_ends_the_worker_and_the_other_followers(leading: list[Process]) -> None:
    process = leading[0]
    followers = wait_for_followers(process)
    assert len(followers) == 2
    os.kill(followers[0], signal.SIGKILL)
    assert process.wait(SECONDS) == CODE
    wait_until_gone(followers)
    assert process.stderr is not None
    assert "lost: a rank has ended with code -9" in process.stderr.read()


def test_ranks_speak_on_this_machine_only_and_a_killed_worker_leaves_no_followers(
    leading: list[Process],
) -> None:
    process = leading[1]
    followers = wait_for_followers(process)
    assert len(followers) == 2
    for pid in (process.pid, *followers):
        assert list_listeners(pid) == {LOOPBACK}
    process.kill()
    wait_until_gone(followers)
