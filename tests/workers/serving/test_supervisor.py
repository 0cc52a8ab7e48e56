"""Servers run as rows want them: they are watched, start again, and end with their supervisor."""

import asyncio
from typing import Any

import httpx
import pytest
from django.db import OperationalError

from tests.workers.serving.fakes import Machines
from tests.workers.serving.supervised import (
    Status,
    has,
    machines,
    on_vllm,
    play,
    read,
    until,
)
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.deployments import replicas, services
from webapp.deployments.models import Deployment, HotLoad, Replica
from webapp.fleet.models import BaseModel
from workers import keeper
from workers.hotload import in_database

__all__ = ["machines", "on_vllm", "play"]  # fixtures


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
