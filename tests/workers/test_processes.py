"""The crew of one installation: what ends is started again, and what is stopped is gone."""

import os
import resource
import sys
import time
from pathlib import Path

import pytest

from workers import processes
from workers.processes import Crew, Process, raise_file_limit

SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]
ENDS = [sys.executable, "-c", "print('bye')"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True);"
    "time.sleep(60)",
]


def make_process(tmp_path: Path, argv: list[str], name: str = "one") -> Process:
    return Process(name=name, argv=argv, environment=os.environ, log=tmp_path / f"{name}.log")


def ignore(text: str) -> None:
    """Nobody listens."""


def wait_until_ended(process: Process) -> None:
    assert process.popen is not None
    process.popen.wait(60)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_ending_a_crew_ends_every_process(tmp_path: Path) -> None:
    crew = Crew([make_process(tmp_path, SLEEPS, name) for name in ("a", "b")], say=ignore)
    crew.start()
    pids = [process.popen.pid for process in crew.processes if process.popen]
    crew.end()
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)


def test_a_process_that_does_not_listen_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "END_SECONDS", 0.2)
    crew = Crew([make_process(tmp_path, STUBBORN)], say=ignore)
    crew.start()
    while not (tmp_path / "one.log").read_text():
        time.sleep(0.02)
    crew.end()
    process = crew.processes[0]
    assert process.popen is not None
    assert process.popen.returncode == -9


def test_a_process_that_ended_is_started_again_and_somebody_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    process = make_process(tmp_path, ENDS)
    crew = Crew([process], say=told.append)
    crew.start()
    first = process.popen
    wait_until_ended(process)
    crew.watch()
    assert "one ended with 0" in told[0]
    process.start_again_at = 1e-9
    crew.watch()
    assert process.popen is not first
    wait_until_ended(process)
    assert (tmp_path / "one.log").read_text() == "bye\nbye\n"


def test_each_early_end_doubles_the_wait(tmp_path: Path) -> None:
    process = make_process(tmp_path, ENDS)
    crew = Crew([process], say=ignore)
    for wait in (1.0, 2.0, 4.0):
        process.start()
        wait_until_ended(process)
        before = time.monotonic()
        crew.watch()
        assert before + wait <= process.start_again_at <= time.monotonic() + wait
        process.start_again_at = 0.0


def test_what_the_others_speak_to_ends_after_them(tmp_path: Path) -> None:
    ends_slowly = (
        "import os, signal, sys, time\n"
        "def end(*_):\n"
        "    time.sleep(0.3)\n"
        "    os.kill(int(sys.argv[1]), 0)\n"
        "    print('it was there', flush=True)\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    server = make_process(tmp_path, SLEEPS, "server")
    server.ends_last = True
    server.start()
    assert server.popen is not None
    client = make_process(tmp_path, [sys.executable, "-c", ends_slowly, str(server.popen.pid)])
    client.start()
    while "ready" not in (tmp_path / "one.log").read_text():
        time.sleep(0.02)
    Crew([server, client], say=ignore).end()
    assert "it was there" in (tmp_path / "one.log").read_text()
    assert not is_alive(server.popen.pid)


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        raise_file_limit()
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised[1] == hard
    assert raised[0] > 512
