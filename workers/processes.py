"""Starts, watches and ends the processes of one installation."""

import ctypes
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_PDEATHSIG = 1
END_SECONDS = 20.0  # a training worker may be in the middle of an operation
OPEN_FILES = 65_536  # of one process, at most
HEALTHY_SECONDS = 30.0  # one that ran this long has not failed to start
LONGEST_WAIT_SECONDS = 30.0

libc = ctypes.CDLL(None)


@dataclass(slots=True, kw_only=True)
class Process:
    """One command line that is to be running. Its output goes to one log file."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    popen: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    ends_last: bool = False  # the others speak to it to their end
    num_failures: int = 0
    start_again_at: float = field(default=0.0)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                self.argv,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches us alone; we end the others in order
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - the launcher has no threads
            )
        self.started_at = time.monotonic()

    @property
    def is_running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None


def _die_with_parent() -> None:
    # A killed launcher must not leave a tree of processes behind it.
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Crew:
    """All processes of an installation, in starting order."""

    def __init__(self, processes: Sequence[Process], say: Callable[[str], None]) -> None:
        self.processes = list(processes)
        self.say = say

    def start(self) -> None:
        for process in self.processes:
            process.start()

    def watch(self) -> None:
        """One look: start again what has ended, later each time it fails early."""
        now = time.monotonic()
        for process in self.processes:
            if process.is_running or process.popen is None:
                continue
            if process.start_again_at == 0.0:
                self._plan_restart(process, now)
            elif now >= process.start_again_at:
                process.start_again_at = 0.0
                process.start()

    def _plan_restart(self, process: Process, now: float) -> None:
        ran_well = now - process.started_at > HEALTHY_SECONDS
        process.num_failures = 0 if ran_well else process.num_failures + 1
        wait = min(0.5 * 2**process.num_failures, LONGEST_WAIT_SECONDS)
        process.start_again_at = now + wait
        code = process.popen.returncode if process.popen else 0
        self.say(f"{process.name} ended with {code}; starting it again. Its log: {process.log}")

    def end(self) -> None:
        """Terminate in reverse order, wait for all, kill what does not end."""
        deadline = time.monotonic() + END_SECONDS
        for is_last in (False, True):
            ending = [each for each in reversed(self.processes) if each.ends_last is is_last]
            for process in ending:
                if process.is_running:
                    _signal_group(process, signal.SIGTERM)
            for process in ending:
                _wait_or_kill(process, deadline)


def _wait_or_kill(process: Process, deadline: float) -> None:
    if process.popen is None:
        return
    try:
        process.popen.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        _signal_group(process, signal.SIGKILL)
        process.popen.wait()


def _signal_group(process: Process, number: signal.Signals) -> None:
    assert process.popen is not None
    try:
        if number == signal.SIGKILL:
            os.killpg(process.popen.pid, number)
        else:
            process.popen.send_signal(number)
    except ProcessLookupError:
        return


def raise_file_limit() -> None:
    """Every waiting poll is an open file, and a thousand are what most systems begin with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
