"""Servers run as rows want them: they are watched, start again, and end with their supervisor."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync
from django.db import OperationalError
from django.utils.timezone import now

from tests.workers.serving.fakes import Machines
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import replicas, services
from webapp.deployments.models import Deployment, HotLoad, Replica, SamplingCall
from webapp.deployments.wanted import Wanted
from webapp.fleet.models import BaseModel
from workers import keeper, servers, supervisor
from workers.hotload import in_database
from workers.preparation import CannotStart
from workers.servers import explain_end, launch
from workers.supervisor import AlreadyServed, Supervisor, end_left, lock_serving
from workers.whole_folders import find_restored

DEADLINE = 60.0
MESSAGES = [{"role": "user", "content": "Hello"}]

Status = Replica.Status
Scene = Callable[[Machines], Awaitable[None]]


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Machines:
    monkeypatch.setattr(supervisor, "LOOK_SECONDS", 0.01)
    for name in ("CHECK", "KNOCK", "FIRST_WAIT", "WORK", "STATS"):
        monkeypatch.setattr(keeper, f"{name}_SECONDS", 0.01)
    return Machines()


@pytest.fixture
def play(machines: Machines, db: None) -> Callable[[Scene], None]:
    """Run the supervisor beside a scene, and end it after."""

    def play(scene: Scene) -> None:
        async def run() -> None:
            kept = Supervisor(launch=machines.launch, connect=machines.connect)
            work = asyncio.create_task(kept.work())
            try:
                await scene(machines)
            finally:
                kept.end()
                await work

        async_to_sync(run)()

    return play


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not await in_database(condition):
            await asyncio.sleep(0.01)


def has(name: str = "built-in", **columns: Any) -> Callable[[], bool]:
    return Replica.objects.filter(name=name, **columns).exists


async def read(name: str = "built-in") -> Replica:
    return await in_database(Replica.objects.get, name=name)


def test_one_server_of_all_base_models_runs_until_the_supervisor_ends(
    play: Any, machines: Machines, base_model: BaseModel
) -> None:
    async def scene(machines: Machines) -> None:
        await until(has(status=Status.READY))
        replica = await read()
        assert (replica.url, replica.engine) == ("http://built-in.1", "built_in")
        assert replica.start
        assert replica.ready_at is not None

    play(scene)
    replica = Replica.objects.get()
    assert (replica.status, replica.start, replica.url) == (Status.STOPPED, "", "")
    assert machines.last("built-in").is_ended


def test_a_server_that_dies_starts_again_under_a_new_start_and_what_it_held_is_lost(
    play: Any, base_model: BaseModel, checkpoint: Checkpoint, alice: Actor
) -> None:
    deployment = services.create_deployment(actor=alice, name="support", checkpoint=checkpoint)

    async def scene(machines: Machines) -> None:
        await until(has(status=Status.READY))
        first = await read()
        load = await in_database(
            HotLoad.objects.create,
            checkpoint=checkpoint,
            server=f"built-in/{first.start}",
            adapter_name="a",
            status="ready",
        )
        await in_database(services.mark_ready, deployment, load)
        machines.last("built-in").die()
        await until(has(status=Status.READY, url="http://built-in.2"))
        second = await read()
        assert (second.start != first.start, second.error) == (True, "")

    play(scene)
    assert HotLoad.objects.get().status == HotLoad.Status.LOST
    deployment.refresh_from_db()
    assert deployment.status == Deployment.Status.LOADING


def test_a_server_that_cannot_start_is_tried_later_and_later_and_says_why(
    play: Any, base_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        waits.append(seconds)
        await sleep(min(seconds, 0.01))

    monkeypatch.setattr(keeper, "FIRST_WAIT_SECONDS", 5.0)
    monkeypatch.setattr("workers.keeper.asyncio.sleep", note)

    async def scene(machines: Machines) -> None:
        machines.refused = "There is no memory for it."
        await until(lambda: len([each for each in waits if each > 1]) >= 5)
        replica = await read()
        assert replica.error == "There is no memory for it."
        machines.refused = ""
        await until(has(status=Status.READY, error=""))

    play(scene)
    assert [each for each in waits if each > 1][:5] == [10.0, 20.0, 40.0, 60.0, 60.0]


def test_a_server_that_hangs_is_lost_at_once_and_ended(
    play: Any, base_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "HUNG_SECONDS", 0.05)
    errors: list[str] = []
    mark_lost = replicas.mark_lost

    def note(name: str, *, start: str, error: str) -> bool:
        errors.append(error)
        return mark_lost(name, start=start, error=error)

    monkeypatch.setattr(replicas, "mark_lost", note)

    async def scene(machines: Machines) -> None:
        await until(has(status=Status.READY))
        first = machines.last("built-in")
        first.is_up = False
        await until(lambda: first.is_ended)
        await until(has(status=Status.READY, url="http://built-in.2"))

    play(scene)
    assert errors == ["The server gave no answer for 0 s."]


def test_a_server_whose_engine_hangs_behind_a_good_health_is_ended(
    play: Any, base_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "READING_SECONDS", 0.05)

    async def scene(machines: Machines) -> None:
        await until(has(status=Status.READY))
        first = machines.last("built-in")
        first.is_stuck = True
        await until(lambda: first.is_ended)
        await until(has(status=Status.READY, url="http://built-in.2"))

    play(scene)


def test_a_database_that_is_away_for_a_moment_ends_no_server(
    play: Any, base_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "AGAIN_SECONDS", 0.01)
    away = iter([OperationalError("it is away")] * 3)
    mark_ready = replicas.mark_ready

    def mark(name: str, **columns: str) -> bool:
        for error in away:
            raise error
        return mark_ready(name, **columns)

    monkeypatch.setattr(replicas, "mark_ready", mark)

    async def scene(machines: Machines) -> None:
        await until(has(status=Status.READY))
        assert next(away, None) is None
        assert len(machines.started["built-in"]) == 1

    play(scene)


def test_a_bug_in_keeping_one_server_ends_it_and_begins_anew(
    play: Any, base_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark_ready, bugs = replicas.mark_ready, iter([RuntimeError("a bug")])

    def mark(name: str, **columns: str) -> bool:
        for bug in bugs:
            raise bug
        return mark_ready(name, **columns)

    monkeypatch.setattr(replicas, "mark_ready", mark)

    async def scene(machines: Machines) -> None:
        await until(has(status=Status.READY, url="http://built-in.2"))
        assert machines.started["built-in"][0].is_ended

    play(scene)


@pytest.mark.usefixtures("on_vllm")
def test_what_a_server_says_of_itself_stands_in_its_row(
    play: Any, alice: Actor, base_model: BaseModel
) -> None:
    services.create_deployment(actor=alice, name="support", base_model=base_model)
    name = f"vllm-tiny-chat-{base_model.pk[-4:]}"
    num_tokens = iter(range(0, 100_000, 50))

    def tell(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/version":
            return httpx.Response(200, json={"version": "0.99.0"})
        if request.url.path == "/metrics":
            lines = [
                f"vllm:generation_tokens_total {next(num_tokens)}",
                "vllm:num_requests_running 2",
            ]
            return httpx.Response(200, text="\n".join(lines))
        return httpx.Response(404, json={"detail": "Not Found"})

    async def scene(machines: Machines) -> None:
        machines.told = tell
        await until(has(name, stats__sampled_tokens_per_second__gt=0))
        replica = await read(name)
        assert (replica.version, replica.stats["running"]) == ("0.99.0", 2)
        assert "This is vLLM 0.99.0" in replica.error
        assert replica.status == Status.READY

    play(scene)


def test_a_server_that_never_answers_is_ended(
    play: Any, base_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "START_SECONDS", 0.05)

    async def scene(machines: Machines) -> None:
        machines.is_slow = True
        await until(lambda: len(machines.started.get("built-in", [])) > 1)
        assert machines.started["built-in"][0].is_ended
        await until(has(error__startswith="The server did not answer within"))

    play(scene)


def test_replicas_come_and_go_with_what_deployments_want(
    play: Any, alice: Actor, base_model: BaseModel
) -> None:
    deployment = services.create_deployment(actor=alice, name="support", base_model=base_model)

    async def scale(num_replicas: int) -> None:
        await in_database(
            replicas.scale_deployment,
            actor=alice,
            deployment=deployment,
            num_replicas=num_replicas,
        )

    def count(**columns: Any) -> int:
        return Replica.objects.filter(**columns).count()

    async def scene(machines: Machines) -> None:
        await scale(3)
        await until(lambda: count(status=Status.READY) == 3)
        assert sorted(starts[-1].place for starts in machines.started.values()) == [0, 1, 2]
        await scale(1)
        await until(lambda: count(status=Status.STOPPED, start="") == 2)
        assert [machines.last(name).is_ended for name in ("built-in-2", "built-in-3")] == [True] * 2
        assert not machines.last("built-in").is_ended

    play(scene)


def test_without_a_base_model_nothing_runs(play: Any, machines: Machines) -> None:
    looks: list[int] = []

    async def scene(machines: Machines) -> None:
        await asyncio.sleep(0.1)
        looks.append(await in_database(Replica.objects.count))

    play(scene)
    assert (looks, machines.started) == ([0], {})


@pytest.fixture
def on_vllm(settings: Any) -> None:
    settings.SERVING = "vllm"


@pytest.mark.usefixtures("on_vllm")
def test_vllm_starts_when_a_call_waits_and_stops_when_nobody_has_asked_for_long(
    play: Any, alice: Actor, base_model: BaseModel, settings: Any
) -> None:
    name = f"vllm-tiny-chat-{base_model.pk[-4:]}"

    async def scene(machines: Machines) -> None:
        await asyncio.sleep(0.05)
        assert machines.started == {}
        call = await in_database(
            services.ask, actor=alice, base_model=base_model, messages=MESSAGES
        )
        await until(has(name, status=Status.READY, base_model=base_model, engine="vllm"))
        await in_database(replicas.note_used, [name])
        await in_database(SamplingCall.objects.filter(pk=call.pk).update, status="done")
        await asyncio.sleep(0.05)
        assert not machines.last(name).is_ended
        long_ago = now() - timedelta(seconds=settings.IDLE_SECONDS + 1)
        await in_database(Replica.objects.filter(name=name).update, used_at=long_ago)
        await until(has(name, status=Status.STOPPED))

    play(scene)


@pytest.mark.usefixtures("on_vllm")
def test_a_deployment_that_is_scaled_to_zero_goes_to_sleep_and_wakes_when_it_is_asked(
    play: Any, alice: Actor, base_model: BaseModel
) -> None:
    deployment = services.create_deployment(actor=alice, name="support", base_model=base_model)
    (first,) = services.list_changes()
    name = f"vllm-tiny-chat-{base_model.pk[-4:]}"

    async def scene(machines: Machines) -> None:
        await until(has(name, status=Status.READY))
        await in_database(services.settle_change, first)
        await in_database(replicas.note_used, [name])
        await in_database(
            replicas.scale_deployment, actor=alice, deployment=deployment, num_replicas=0
        )
        await until(has(name, status=Status.STOPPED, start=""))
        await in_database(deployment.refresh_from_db)
        await in_database(services.ask, actor=alice, deployment=deployment, messages=MESSAGES)
        await until(has(name, status=Status.READY))
        assert len(machines.started[name]) == 2

    play(scene)


@pytest.mark.usefixtures("on_vllm")
def test_a_model_of_all_weights_has_a_server_of_its_own_on_vllm(
    play: Any, alice: Actor, base_model: BaseModel, save: Callable[..., Checkpoint]
) -> None:
    whole = save(rank=0, type="base")
    deployment = services.create_deployment(actor=alice, name="whole", checkpoint=whole)

    async def scene(machines: Machines) -> None:
        await until(has(f"vllm-{deployment.pk}", status=Status.READY, deployment=deployment))
        assert list(machines.started) == [f"vllm-{deployment.pk}"]

    play(scene)


@pytest.mark.usefixtures("on_vllm")
def test_a_model_of_all_weights_that_no_deployment_holds_wakes_the_built_in_server(
    play: Any, alice: Actor, save: Callable[..., Checkpoint]
) -> None:
    whole = save(rank=0, type="base")
    services.ask(actor=alice, checkpoint=whole, messages=MESSAGES)

    async def scene(machines: Machines) -> None:
        await until(has(status=Status.READY, engine="built_in"))
        assert list(machines.started) == ["built-in"]

    play(scene)


def test_a_server_that_somebody_else_starts_is_watched_and_not_ended(
    play: Any, base_model: BaseModel, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SAMPLING_SERVER_URL = "http://elsewhere"
    monkeypatch.setattr(keeper, "HUNG_SECONDS", 0.05)

    async def scene(machines: Machines) -> None:
        await until(has("external", status=Status.READY, url="http://elsewhere"))
        first = await read("external")
        machines.is_slow = True
        machines.last("external").is_up = False
        await until(lambda: len(machines.started["external"]) == 2)
        await until(has("external", status=Status.STARTING))
        machines.last("external").is_up = True
        await until(has("external", status=Status.READY))
        assert (await read("external")).start != first.start

    play(scene)


def test_servers_take_turns_with_the_devices_and_leave_memory_to_a_trainer(
    base_model: BaseModel, settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings.VLLM_DEVICES, settings.VLLM_PYTHON = ["1", "3"], tmp_path
    wanted = Wanted(name="vllm-1", engine="vllm", base_model=base_model, max_rank=100)
    on_cpu = servers.build_vllm(wanted, 7)
    assert on_cpu[on_cpu.index("--kv-cache-memory-bytes") + 1] == str(2**30)
    monkeypatch.setattr(servers, "NVIDIA", tmp_path)
    on_gpu = servers.build_vllm(wanted, 7)
    assert on_gpu[on_gpu.index("--gpu-memory-utilization") + 1] == "0.4"
    assert on_gpu[on_gpu.index("--max-lora-rank") + 1] == "128"
    taken = [servers.describe_vllm(place)["CUDA_VISIBLE_DEVICES"] for place in range(3)]
    assert taken == ["1", "3", "1"]


def test_vllm_without_its_environment_or_model_does_not_start_and_says_what_to_do(
    base_model: BaseModel, settings: Any, tmp_path: Path
) -> None:
    wanted = Wanted(name="vllm-1", engine="vllm", base_model=base_model)
    settings.VLLM_PYTHON = tmp_path / "bin" / "python"
    with pytest.raises(CannotStart, match="make run SERVING=vllm"):
        servers.build_vllm(wanted, 7)
    settings.VLLM_PYTHON, base_model.path = tmp_path, str(tmp_path)
    with pytest.raises(CannotStart, match=r"is not at .* any more"):
        servers.build_vllm(wanted, 7)


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
