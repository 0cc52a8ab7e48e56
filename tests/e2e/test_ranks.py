"""Two processes hold one model: the whole product trains with them, and one of them is killed."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.live import Live, read_report
from tests.e2e.test_recovery import END_SECONDS, find_processes, read, wait_until_gone

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NUM_STEPS = 16
KILLED_AT = 8


@pytest.fixture
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One for each test: one of them ends it, and tests come in any order."""
    installation = Live(tmp_path_factory.mktemp("sharded"))
    installation.environment["HONE_RANKS"] = "2"
    installation.start()
    yield installation
    installation.stop()


def find_follower(installation: Live) -> int:
    worker = find_processes(installation.process.pid)["gpu"]
    threads = [folder.name for folder in Path(f"/proc/{worker}/task").iterdir()]
    (follower,) = [pid for each in threads for pid in read(worker, f"task/{each}/children").split()]
    return int(follower)


def test_a_killed_rank_is_a_pause_of_the_run(sharded: Live) -> None:
    """The worker ends with it, the launcher starts both again, and the journal goes on."""
    undisturbed = sharded.run("loop.py", str(NUM_STEPS))
    first = find_follower(sharded)
    program = sharded.begin("loop.py", str(NUM_STEPS))
    assert program.stderr is not None
    for line in program.stderr:
        if line.strip() == f"step {KILLED_AT}":
            os.kill(first, signal.SIGKILL)
    assert read_report(program)["losses"] == pytest.approx(undisturbed["losses"], rel=1e-5)
    log = (sharded.home / "logs" / "gpu.log").read_text()
    assert "this worker ends with it" in log
    told = sharded.manage(
        "from webapp.fleet.models import Worker; print(Worker.objects.get(kind='gpu').device)"
    )
    assert told.endswith(", 2 ranks, sharded")
    second = find_follower(sharded)
    assert second != first


def test_an_orderly_end_leaves_no_rank(sharded: Live) -> None:
    follower = find_follower(sharded)
    sharded.process.send_signal(signal.SIGINT)
    assert sharded.process.wait(END_SECONDS) == 0
    wait_until_gone([follower])
    assert "this worker ends with it" not in (sharded.home / "logs" / "gpu.log").read_text()
