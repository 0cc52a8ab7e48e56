"""Servers that are processes: they end with their supervisor, and say why they have ended."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from asgiref.sync import async_to_sync

from tests.workers.serving.fakes import Machines
from tests.workers.serving.supervised import (
    DEADLINE,
    Status,
    has,
    machines,
    read,
    until,
)
from webapp.deployments.models import Replica
from webapp.deployments.wanted import Wanted
from webapp.fleet.models import BaseModel
from workers import keeper, supervisor
from workers.servers import explain_end, launch
from workers.supervisor import AlreadyServed, Supervisor, end_left, lock_serving
from workers.whole_folders import find_restored

__all__ = ["machines"]  # a fixture


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_the_built_in_server_runs_answers_and_ends_with_its_supervisor(
    base_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LOOK_SECONDS", 0.05)
    pids: list[int] = []

    async def run() -> None:
        kept = Supervisor()
        work = asyncio.create_task(kept.work())
        try:
            await until(has(status=Status.READY))
            replica = await read()
            assert replica.pid is not None
            pids.append(replica.pid)
            async with kept.connect(replica.url) as server:
                assert await server.health()
        finally:
            kept.end()
            await work

    async_to_sync(run)()
    assert not Path(f"/proc/{pids[0]}").exists()


def test_what_a_killed_supervisor_has_left_is_ended_by_the_next(base_model: BaseModel) -> None:
    stray = subprocess.Popen(
        [sys.executable, "-m", "workers.watched", "sleep", "600"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    row = {"engine": "built_in", "status": Status.READY, "start": "1"}
    Replica.objects.create(name="built-in", pid=stray.pid, **row)
    other = Replica.objects.create(name="built-in-2", pid=os.getpid(), **row)
    deadline = time.monotonic() + DEADLINE
    while b"watched" not in Path(f"/proc/{stray.pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "it does not start"
    async_to_sync(end_left)()
    assert stray.wait(DEADLINE) < 0
    assert stray.stdin is not None
    stray.stdin.close()
    other.refresh_from_db()
    assert (other.status, other.pid) == (Status.LOST, None)


def test_a_second_supervisor_of_the_same_installation_is_refused() -> None:
    with lock_serving(), pytest.raises(AlreadyServed, match="Another process"), lock_serving():
        pass
    with lock_serving():
        pass


@pytest.mark.parametrize(
    ("code", "said", "sentence"),
    [
        (256 - signal.SIGKILL, "", "was killed, as the system does where memory runs out."),
        (
            1,
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
            "ran out of memory: torch.OutOfMemoryError: CUDA out of memory.",
        ),
        (
            0,
            "(EngineCore_0 pid=7) ValueError: llama9 is not known\n(APIServer pid=3) Bye",
            "ended with code 0: ValueError: llama9 is not known.",
        ),
    ],
)
def test_why_a_server_has_ended_is_a_sentence(code: int, said: str, sentence: str) -> None:
    assert sentence in explain_end(code, said, Path("logs/vllm.log"))


def test_what_was_restored_for_an_earlier_start_is_removed_before_the_next(
    base_model: BaseModel,
) -> None:
    left = find_restored("built-in") / "ckpt-1"
    left.mkdir(parents=True)
    wanted = Wanted(name="built-in", engine="built_in")

    async def begin() -> None:
        launched = await launch(wanted)
        await launched.end()

    async_to_sync(begin)()
    assert not left.exists()


def test_a_server_that_hangs_is_not_waited_for_when_it_is_to_end(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "DRAIN_SECONDS", 0.05)
    wanted = Wanted(name="one", engine=Replica.Engine.VLLM)

    async def run() -> None:
        machine = await machines.launch(wanted, 0)
        machine.is_stuck = True
        kept = keeper.Keeper(
            wanted=wanted, launch=machines.launch, connect=machines.connect, url=machine.url
        )
        async with asyncio.timeout(DEADLINE):
            await kept.drain()

    async_to_sync(run)()
