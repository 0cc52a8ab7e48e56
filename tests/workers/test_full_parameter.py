"""Full-parameter runs on a device: an engine each, crashes that change no bit, bases and deltas."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.workers.cast import (
    Kind,
    Program,
    make_client_run,
    make_device,
    read_loss,
    read_output,
    take_turns,
)
from training.model_files import WEIGHTS_FILE
from webapp.accounts.models import Actor, Role
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import find_folder
from webapp.fleet.models import Worker
from webapp.runs import queue
from webapp.runs.models import Operation, Run
from workers import journal
from workers.device import Device, beat, register
from workers.gpu import run_turn

pytestmark = pytest.mark.django_db


def make_full(number: int = 0) -> Program:
    run = make_client_run(number)
    Run.objects.filter(pk=run.pk).update(rank=0)
    run.refresh_from_db()
    program = Program(run=run)
    program.create(rank=0)
    return program


def restart() -> Device:
    """The process is gone and another of the same name begins."""
    queue.release_worker(worker="w1")
    return make_device()


def sample(program: Program, **content: Any) -> Operation:
    return program.send(Kind.SAVE_WEIGHTS_FOR_SAMPLER, **content)


def list_checkpoints(program: Program) -> list[Checkpoint]:
    return list(Checkpoint.objects.filter(run=program.run).order_by("seq"))


def save_steps(program: Program, count: int, **content: Any) -> list[Checkpoint]:
    """A step before each of so many saves of sampler weights."""
    for number in range(count):
        program.learn(number)
        program.step(1e-4)
        sample(program, **content)
    take_turns(make_device())
    return list_checkpoints(program)


def act_for(program: Program) -> Actor:
    run = program.run
    assert run.created_by is not None
    return Actor(user=run.created_by, project=run.project, role=Role.OWNER)


def submit_all(program: Program) -> list[Operation]:
    """Two gradients a step here and there, a refused step, saves and a load in the middle."""
    operations = [program.learn(0), program.learn(1)]
    program.step(1e-3)
    operations.append(program.learn(2, forward_only=True))
    sample(program, name="first")
    operations.append(program.learn(3))
    program.send(Kind.SAVE_WEIGHTS, name="half")
    program.step(1e-3)
    program.step(float("inf"))
    sample(program, name="second")
    operations.extend(program.train(range(4, 6)))
    return operations


@pytest.fixture
def undisturbed() -> list[float]:
    program = make_full(9)
    operations = submit_all(program)
    take_turns(make_device("calm"))
    return [read_loss(operation) for operation in operations]


@pytest.mark.parametrize("autosave_seconds", [0.0, 1e9])
def test_a_device_that_is_killed_after_every_turn_changes_no_bit(
    undisturbed: list[float], monkeypatch: pytest.MonkeyPatch, autosave_seconds: float
) -> None:
    monkeypatch.setattr(journal, "AUTOSAVE_SECONDS", autosave_seconds)
    program = make_full()
    operations = submit_all(program)
    device = make_device()
    while run_turn(device):
        device = restart()
    assert [read_loss(operation) for operation in operations] == undisturbed
    kinds = [(each.kind, each.type) for each in list_checkpoints(program)]
    assert kinds == [("sampler", "base"), ("training", "base"), ("sampler", "delta")]


def test_it_trains_beside_adapters_of_the_same_base_and_changes_none_of_them() -> None:
    alone, beside, full = Program(run=make_client_run(1)), Program(run=make_client_run(2)), None
    alone.create()
    losses = alone.train(range(3))
    take_turns(make_device("calm"))
    full = make_full(3)
    beside.create()
    mine, theirs = full.train(range(3)), beside.train(range(3))
    device = make_device()
    take_turns(device)
    assert [read_loss(each) for each in theirs] == [read_loss(each) for each in losses]
    assert read_loss(mine[0]) == pytest.approx(read_loss(theirs[0]), rel=1e-5)
    assert read_loss(mine[2]) != read_loss(theirs[2])
    assert len(device.engines) == 2
    engines = {held.engine for held in device.held.values()}
    assert len(engines) == 2


def test_a_worker_tells_the_base_model_once_whoever_has_trained_it() -> None:
    lora, full = Program(run=make_client_run(1)), make_full(2)
    lora.create()
    device = make_device()
    register(device)
    take_turns(device)
    beat(device)
    holds = Worker.objects.get().holds
    assert holds["base_models"] == [full.run.base_model_id]
    assert holds["shared_models"] == [lora.run.base_model_id]
    assert set(holds["runs"]) == {lora.run.pk, full.run.pk}
    device.close(lora.run.base_model_id)
    beat(device)
    holds = Worker.objects.get().holds
    assert holds["base_models"] == [full.run.base_model_id]
    assert holds["shared_models"] == []


def test_it_leaves_memory_with_its_engine_and_comes_back_as_it_was(
    undisturbed: list[float],
) -> None:
    program = make_full()
    operations = submit_all(program)[:-1]
    device = make_device()
    take_turns(device)
    (engine,) = device.engines.values()
    device.evict(program.run.pk)
    assert not device.engines
    assert not device.cycles
    assert engine.is_spent
    last = program.learn(4)
    take_turns(device)
    other = make_device("other")
    Run.objects.filter(pk=program.run.pk).update(worker="")
    again = program.learn(4, forward_only=True)
    take_turns(other)
    assert read_loss(again) == read_loss(last)
    assert read_loss(operations[0]) == undisturbed[0]


def test_a_model_too_many_makes_room_and_both_go_on() -> None:
    first, second, third = (make_full(number) for number in range(3))
    for program in (first, second, third):
        program.train(range(2))
    device = make_device()
    take_turns(device)
    assert len(device.engines) == 2
    ends = [program.learn(2) for program in (first, second, third)]
    take_turns(device)
    assert len({read_loss(operation) for operation in ends}) == 1


def test_a_run_that_is_over_gives_its_engine_back(tmp_path: Path) -> None:
    program = make_full()
    program.train(range(1))
    device = make_device()
    take_turns(device)
    Run.objects.filter(pk=program.run.pk).update(status=Run.Status.DONE)
    device.tidied_at = -1e9
    assert not run_turn(device)
    assert not device.engines
    assert not (tmp_path / "autosaves" / program.run.pk).exists()


def test_an_attempt_to_restore_that_broke_leaves_nothing_in_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = make_full()
    (before,) = program.train(range(1))
    device = make_device()
    take_turns(device)
    device.evict(program.run.pk)
    after = program.learn(1)

    def break_down(*_: Any) -> None:
        raise RuntimeError("the disk was slow")

    monkeypatch.setattr(journal, "replay", break_down)
    monkeypatch.setattr(journal, "find_replay", lambda run: [run])
    device.fresh.clear()
    take_turns(device)
    after.refresh_from_db()
    assert after.error_category == "server"
    monkeypatch.undo()
    again = program.learn(1)
    take_turns(device)
    assert read_loss(again) != read_loss(before)
    assert len(device.engines) == 1


def test_an_autosave_waits_longer_where_it_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    program = make_full()
    program.train(range(1))
    device = make_device()
    take_turns(device)
    (held,) = device.held.values()
    held.autosaved_at, held.autosave_seconds = time.monotonic() - 40, 0.5
    assert journal.is_autosave_due(held)
    held.autosave_seconds = 3.0
    assert not journal.is_autosave_due(held)
    held.autosaved_at -= 30
    assert journal.is_autosave_due(held)
    journal.autosave(held)
    assert held.autosave_seconds not in (0, 3.0)


@pytest.mark.parametrize("optimizer", [True, False])
def test_another_run_goes_on_from_a_state(optimizer: bool) -> None:
    program = make_full()
    program.train(range(2))
    program.send(Kind.SAVE_WEIGHTS, name="half")
    scored = program.learn(5, forward_only=True)
    program.learn(2)
    program.step(1e-3)
    same = program.learn(6, forward_only=True)
    take_turns(make_device())
    checkpoint = Checkpoint.objects.get()
    assert (checkpoint.type, checkpoint.has_optimizer, checkpoint.rank) == ("base", True, 0)
    branch = make_full(1)
    branch.send(Kind.LOAD_WEIGHTS, checkpoint=checkpoint.pk, optimizer=optimizer)
    read = branch.learn(5, forward_only=True)
    branch.learn(2)
    branch.step(1e-3)
    after = branch.learn(6, forward_only=True)
    take_turns(restart())
    assert read_loss(read) == read_loss(scored)
    assert (read_loss(after) == read_loss(same)) is optimizer


def test_a_run_of_an_adapter_does_not_take_all_weights_nor_the_other_way_round() -> None:
    full, lora = make_full(), Program(run=make_client_run(1))
    lora.create()
    for program in (full, lora):
        program.send(Kind.SAVE_WEIGHTS, name="half")
    device = make_device()
    take_turns(device)
    (of_full,), (of_lora,) = list_checkpoints(full), list_checkpoints(lora)
    program = Program(run=make_client_run(2))  # it begins with what it loads
    refused = [
        each.send(Kind.LOAD_WEIGHTS, checkpoint=checkpoint.pk, optimizer=True)
        for each, checkpoint in ((full, of_lora), (program, of_full))
    ]
    after = lora.learn(0)
    take_turns(device)
    for operation in refused:
        operation.refresh_from_db()
        assert (operation.status, operation.error_category) == ("failed", "user")
        assert "half is of a run that trains other weights" in operation.error
    assert read_loss(after) > 0


def test_another_run_goes_on_from_a_delta() -> None:
    program = make_full()
    delta = save_steps(program, 2)[-1]
    branch = make_full(1)
    branch.send(Kind.LOAD_WEIGHTS, checkpoint=delta.pk, optimizer=False)
    read, mine = branch.learn(5, forward_only=True), program.learn(5, forward_only=True)
    take_turns(restart())
    # The delta holds what is stored, in bfloat16; the run's own weights are not rounded.
    assert read_loss(read) == pytest.approx(read_loss(mine), rel=1e-3)
    assert read_output(read).logprobs[0].std() > 0


def test_an_export_is_a_folder_of_a_whole_model() -> None:
    program = make_full()
    program.train(range(1))
    program.send(Kind.SAVE_WEIGHTS_EXTERNAL, name="out")
    take_turns(make_device())
    (checkpoint,) = list_checkpoints(program)
    files = {file.name for file in find_folder(checkpoint).iterdir()}
    assert {"README.md", "config.json", "tokenizer.json", WEIGHTS_FILE} <= files
    assert "AutoModelForCausalLM" in (find_folder(checkpoint) / "README.md").read_text()


@pytest.mark.parametrize(
    ("submit", "text"),
    [
        (lambda program: program.create(rank=0, optimizer="dimuon"), "optimizer is adamw"),
        (lambda program: program.step_dimuon(), "this run's optimizer is adamw"),
    ],
)
def test_dimuon_is_refused_in_a_sentence(submit: Callable[[Program], Operation], text: str) -> None:
    program = make_full()
    refused = submit(program)
    take_turns(make_device())
    refused.refresh_from_db()
    assert (refused.status, refused.error_category) == ("failed", "user")
    assert text in refused.error


def test_a_device_knows_no_more_of_engines_than_it_holds() -> None:
    device: Device = make_device()
    program = make_full()
    program.train(range(1))
    take_turns(device)
    device.close(program.run.pk)
    assert (device.engines, device.held, device.cycles) == ({}, {}, {})
