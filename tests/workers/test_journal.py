"""kill -9 of a device at every turn: nothing lost, nothing twice, the same losses."""

import errno
from pathlib import Path
from typing import Any

import pytest

from tests.workers.cast import (
    Kind,
    Program,
    make_client_run,
    make_device,
    read_answer,
    read_loss,
    take_turns,
)
from webapp.checkpoints.models import Checkpoint
from webapp.runs import queue
from webapp.runs.models import Metric, Operation, Run
from workers import execute, journal
from workers.device import Device
from workers.execute import Held
from workers.gpu import run_turn

pytestmark = pytest.mark.django_db


def restart(device: Device) -> Device:
    """The process is gone and another of the same name begins."""
    queue.release_worker(worker=device.setup.name)
    return make_device(device.setup.name)


def submit_all(program: Program) -> list[Operation]:
    """Two gradients a step here and there, a look without gradient, and a save in the middle."""
    program.create()
    operations = [program.learn(0), program.learn(1)]
    program.step(grad_accumulation_normalization="num_loss_tokens")
    operations.append(program.learn(2, forward_only=True))
    operations.append(program.learn(3))
    program.send(Kind.SAVE_WEIGHTS, name="half")
    program.step()
    program.step(float("inf"))
    operations.extend(program.train(range(4, 6)))
    return operations


def read_numbers(run: Run) -> list[tuple[int, str, float]]:
    rows = Metric.objects.filter(run=run).exclude(key="tokens_per_second").order_by("step", "key")
    return list(rows.values_list("step", "key", "value"))


@pytest.fixture
def undisturbed() -> tuple[list[float], list[tuple[int, str, float]]]:
    program = Program(run=make_client_run(9))
    operations = submit_all(program)
    take_turns(make_device("calm"))
    return [read_loss(operation) for operation in operations], read_numbers(program.run)


def check_same(
    program: Program,
    operations: list[Operation],
    undisturbed: tuple[list[float], list[tuple[int, str, float]]],
) -> None:
    losses, numbers = undisturbed
    assert [read_loss(operation) for operation in operations] == pytest.approx(losses, rel=1e-5)
    mine = read_numbers(program.run)
    assert [row[:2] for row in mine] == [row[:2] for row in numbers]
    assert [row[2] for row in mine] == pytest.approx([row[2] for row in numbers], rel=1e-4)
    assert Run.objects.get(pk=program.run.pk).step == 4
    assert Checkpoint.objects.filter(run=program.run).count() == 1


@pytest.mark.parametrize("autosave_seconds", [0.0, 1e9])
def test_a_device_that_is_killed_after_every_turn_changes_no_number(
    undisturbed: Any, monkeypatch: pytest.MonkeyPatch, autosave_seconds: float
) -> None:
    monkeypatch.setattr(journal, "AUTOSAVE_SECONDS", autosave_seconds)
    program = Program()
    operations = submit_all(program)
    device = make_device()
    while run_turn(device):
        device = restart(device)
    check_same(program, operations, undisturbed)


def test_a_device_that_is_killed_before_it_could_store_anything_does_it_again(
    undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Program()
    operations = submit_all(program)
    device, kills = make_device(), iter([True, False] * 100)
    finish = queue.finish_operation

    def die_or_finish(operation: Operation, **columns: Any) -> bool:
        if next(kills):
            raise SystemExit
        return finish(operation, **columns)

    monkeypatch.setattr(queue, "finish_operation", die_or_finish)
    is_more = True
    while is_more:
        try:
            is_more = run_turn(device)
        except SystemExit:
            device = restart(device)
    check_same(program, operations, undisturbed)


def test_another_worker_takes_over_when_the_lease_has_ended(undisturbed: Any) -> None:
    program = Program()
    operations = submit_all(program)
    dead, heir = make_device("dead"), make_device("heir")
    for _ in range(4):
        run_turn(dead)
    assert not run_turn(heir)
    Run.objects.filter(pk=program.run.pk).update(lease_until=program.run.created_at)
    take_turns(heir)
    check_same(program, operations, undisturbed)
    program.learn(6)
    Run.objects.filter(pk=program.run.pk).update(worker="", lease_until=None)
    take_turns(dead)
    seq = Operation.objects.filter(run=program.run, status=Operation.Status.DONE).count()
    assert dead.held[program.run.pk].seq == seq  # one was refused, and the first has number 0


def test_an_autosave_erases_payloads_and_only_the_newest_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(journal, "AUTOSAVE_SECONDS", 0.0)
    program = Program()
    program.create()
    program.train(range(3))
    last = program.learn(3)
    take_turns(make_device())
    run = Run.objects.get(pk=program.run.pk)
    assert run.autosave_seq == 6
    folders = list((tmp_path / "autosaves" / run.pk).iterdir())
    assert [str(folder.relative_to(tmp_path)) for folder in folders] == [run.autosave_path]
    kept = Operation.objects.filter(run=run, payload__isnull=False)
    assert list(kept) == [last]


def test_many_bytes_are_a_reason_to_autosave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "AUTOSAVE_BYTES", 1)
    program = Program()
    program.create()
    program.train(range(1))
    take_turns(make_device())
    assert Run.objects.get(pk=program.run.pk).autosave_seq == 2


def test_a_save_that_was_written_before_a_crash_is_found_not_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = Program()
    program.create()
    program.train(range(1))
    operation = program.send(Kind.SAVE_WEIGHTS, name="half/way", ttl_seconds=3600)
    device = make_device()
    save = execute.save_checkpoint

    def save_and_die(*arguments: Any) -> Checkpoint:
        save(*arguments)
        raise SystemExit

    monkeypatch.setattr(execute, "save_checkpoint", save_and_die)
    with pytest.raises(SystemExit):
        take_turns(device)
    monkeypatch.undo()
    first = Checkpoint.objects.get(run=program.run)
    take_turns(restart(device))
    checkpoint = Checkpoint.objects.get(run=program.run)
    assert first == checkpoint
    answer = read_answer(operation)
    assert answer["path"] == f"tinker://{program.run.model_id}/weights/half/way"
    assert answer["checkpoint"] == checkpoint.pk
    assert (tmp_path / checkpoint.path / "manifest.json").exists()
    assert checkpoint.expires_at is not None
    assert checkpoint.size_bytes > 1000
    assert len(checkpoint.probe["logprobs"]) == len(checkpoint.probe["tokens"]) - 1


def test_an_idle_run_leaves_memory_and_comes_back_when_it_is_asked_for() -> None:
    first, second = Program(), Program(run=make_client_run(1))
    for program in (first, second):
        program.create()
        program.train(range(2))
    device = make_device()
    take_turns(device)
    device.evict(first.run.pk)
    assert device.held.keys() == {second.run.pk}
    assert Run.objects.get(pk=first.run.pk).autosave_seq == 4
    ends = [program.learn(2) for program in (first, second)]
    take_turns(device)
    assert read_loss(ends[0]) == pytest.approx(read_loss(ends[1]), rel=1e-5)


def test_weights_of_a_run_that_is_over_are_dropped_with_their_autosave(tmp_path: Path) -> None:
    program = Program()
    program.create()
    program.train(range(1))
    device = make_device()
    take_turns(device)
    journal.autosave(device.held[program.run.pk])
    Run.objects.filter(pk=program.run.pk).update(status=Run.Status.DONE)
    device.tidied_at = -1e9
    assert not run_turn(device)
    assert not device.held
    assert not (tmp_path / "autosaves" / program.run.pk).exists()
    assert Run.objects.get(pk=program.run.pk).worker == ""


def test_a_run_does_not_go_on_without_the_weights_that_it_had_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent, branch = Program(), Program(run=make_client_run(1))
    parent.create()
    parent.train(range(1))
    parent.send(Kind.SAVE_WEIGHTS, name="start")
    device = make_device()
    take_turns(device)
    monkeypatch.setattr(journal, "autosave", raise_disk_full)
    branch.create()
    branch.send(Kind.LOAD_WEIGHTS, checkpoint=Checkpoint.objects.get().pk, optimizer=True)
    take_turns(device)
    Checkpoint.objects.update(deleted_at=parent.run.created_at)
    later = branch.learn(2)
    take_turns(restart(device))
    later.refresh_from_db()
    assert later.status == Operation.Status.FAILED
    assert "start was deleted" in later.error


def raise_disk_full(_held: Held) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
