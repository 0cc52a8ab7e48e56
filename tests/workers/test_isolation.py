"""An isolation test on a device that trains: between two turns, and nobody's run is touched."""

from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from tests.webapp.cast import make_actor
from tests.workers.cast import (
    Program,
    make_client_run,
    make_datum,
    make_device,
    read_loss,
    take_turns,
)
from training.engine.core import Engine
from training.engine.isolation import Difference
from webapp.fleet.isolation import start_isolation_test
from webapp.fleet.models import IsolationTest
from webapp.runs.models import Operation
from workers import gpu
from workers.device import Device, beat, register
from workers.gpu import run_turn
from workers.isolation import describe
from workers.management.commands import isolation as command

pytestmark = pytest.mark.django_db

LARGE = [make_datum(seed, 40) for seed in range(6)]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """Registered, with the tiny model in memory."""
    device = make_device(token_budget=80)
    register(device)
    monkeypatch.setattr(gpu.Holder, "device", device)
    program = Program()
    program.create()
    take_turns(device)
    beat(device)
    return device


def start() -> IsolationTest:
    return start_isolation_test(actor=make_actor(), worker="w1", base_model="tiny")


def test_it_is_made_once_while_runs_train_and_changes_nothing_for_them(device: Device) -> None:
    program, calm = Program(run=make_client_run(1)), Program(run=make_client_run(2))
    losses = []
    for each in (program, calm):
        each.create()
        take_turns(device)
        losses.append([each.learn_from(LARGE), each.step(), each.learn(1)])
        run_turn(device)  # a part of the first one
        if each is program:
            test = start()
            gpu.test_isolation(test.pk)
            gpu.test_isolation(test.pk)  # a message that came twice
        take_turns(device)
    test.refresh_from_db()
    assert (test.status, test.is_passed) == ("done", True)
    assert (test.dtype, test.num_tokens) == ("float32", 400)
    assert [row["quantity"] for row in test.differences] == ["loss", "logprobs", "gradients"]
    assert test.seconds is not None
    assert test.seconds > 0
    assert [read_loss(operation) for operation in (losses[0][0], losses[0][2])] == [
        read_loss(operation) for operation in (losses[1][0], losses[1][2])
    ]


def test_runs_have_their_turns_between_its_passes(device: Device) -> None:
    program = Program(run=make_client_run(1))
    program.create()
    take_turns(device)
    told = [program.learn_from(LARGE), program.step(), program.learn(1)]
    gpu.test_isolation(start().pk)
    assert all(Operation.objects.get(pk=each.pk).status == "done" for each in told)


def test_a_model_that_leaves_memory_in_the_middle_ends_the_test(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evict(device: Device) -> bool:
        for key in list(device.engines):
            device.close(key)
        return False

    monkeypatch.setattr(gpu, "run_turn", evict)
    test = start()
    (engine,) = device.engines.values()
    gpu.test_isolation(test.pk)
    test.refresh_from_db()
    assert test.status == "failed"
    assert "holds no tiny that runs share" in test.error
    assert not engine.runs


def test_a_model_that_left_memory_is_not_brought_back(device: Device) -> None:
    test = start()
    for base_model_id in list(device.engines):
        device.close(base_model_id)
    gpu.test_isolation(test.pk)
    test.refresh_from_db()
    assert test.status == "failed"
    assert test.error == "The worker holds no tiny that runs share, at this moment."
    assert not device.engines


def test_a_fault_has_a_number_and_leaves_no_tenant(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Engine, "run_pack", break_down)
    test = start()
    gpu.test_isolation(test.pk)
    test.refresh_from_db()
    assert test.status == "failed"
    assert "internal error" in test.error
    (engine,) = device.engines.values()
    assert len(engine.runs) == 1


def test_numbers_that_are_none_are_null() -> None:
    told = describe(
        Difference(quantity="loss", largest=float("nan"), beside=float("inf"), tolerance=1e-5)
    )
    assert (told["largest"], told["beside"], told["share"]) == (None, None, None)
    assert told["is_within"] is False


def test_the_command_makes_one_and_says_what_it_found(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_meanwhile(_: float) -> None:
        gpu.test_isolation(IsolationTest.objects.get().pk)

    monkeypatch.setattr("workers.management.commands.isolation.time.sleep", make_meanwhile)
    told = StringIO()
    call_command("isolation", "w1", "tiny", stdout=told)
    for quantity in ("loss", "logprobs", "gradients"):
        assert f"{quantity}\t" in told.getvalue()
    assert "e-07 of the largest number (1e-05 is rounding in float32)" in told.getvalue()
    assert "passed in" in told.getvalue()


def test_the_command_says_what_is_wrong(device: Device) -> None:
    with pytest.raises(CommandError, match="no gpu worker unknown"):
        call_command("isolation", "unknown", "tiny")
    with pytest.raises(CommandError, match="the worker is busy"):
        call_command("isolation", "w1", "tiny", wait=0.0)
    IsolationTest.objects.update(status="failed", error="no room")
    with pytest.raises(CommandError, match="no room"):
        command.Command().tell(IsolationTest.objects.get())
    IsolationTest.objects.update(status="done", is_passed=False)
    with pytest.raises(CommandError, match="not isolated"):
        command.Command().tell(IsolationTest.objects.get())
