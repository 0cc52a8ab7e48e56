"""A step is made on all of its gradients or not at all; the run goes on either way."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils.timezone import now

from tests.workers.cast import (
    Kind,
    Program,
    make_client_run,
    make_device,
    read_answer,
    read_loss,
    take_turns,
)
from webapp.runs import queue
from webapp.runs.models import Operation, Run
from workers import journal
from workers.device import Device
from workers.gpu import run_turn

pytestmark = pytest.mark.django_db


def fail_one(program: Program, **settings: Any) -> None:
    program.learn(9, loss_fn="no_such_loss", **settings)


SPOILERS: list[Callable[[Program], None]] = [fail_one, Program.be_refused]


def read_failure(operation: Operation) -> tuple[str, str]:
    operation.refresh_from_db()
    assert operation.status == Operation.Status.FAILED
    return operation.error_category, operation.error


def run_calmly(device: Device) -> None:
    take_turns(device)


def run_killed(device: Device) -> None:
    """The process is gone after every turn, and another of the same name begins."""
    while run_turn(device):
        queue.release_worker(worker=device.setup.name)
        device = make_device(device.setup.name)


def train_cleanly() -> float:
    """What a run loses in its second step that has seen but 1 and 2."""
    program = Program(run=make_client_run(9))
    program.create()
    program.train(range(1, 2))
    last = program.learn(2)
    take_turns(make_device("calm"))
    return read_loss(last)


@pytest.mark.parametrize("go_on", [run_calmly, run_killed])
@pytest.mark.parametrize("autosave_seconds", [0.0, 1e9])
@pytest.mark.parametrize("spoil", SPOILERS)
def test_no_step_is_made_on_a_part_of_the_gradients_and_the_next_pair_is_as_if_nothing_was(
    spoil: Callable[[Program], None],
    autosave_seconds: float,
    go_on: Callable[[Device], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal, "AUTOSAVE_SECONDS", autosave_seconds)
    program = Program()
    program.create()
    program.learn(0)
    spoil(program)
    program.send(Kind.SAVE_WEIGHTS, name="between")
    program.learn(3)
    partial = program.step()
    pair = program.train(range(1, 2)), program.learn(2)
    go_on(make_device())
    category, error = read_failure(partial)
    assert category == "user"
    assert "seq_id 2 failed" in error
    assert read_loss(pair[0][0]) > 0
    assert read_loss(pair[1]) == pytest.approx(train_cleanly(), rel=1e-5)
    assert Run.objects.get(pk=program.run.pk).step == 1


@pytest.mark.parametrize("go_on", [run_calmly, run_killed])
def test_a_failed_first_forward_backward_fails_its_step_too(go_on: Any) -> None:
    program = Program()
    program.create()
    fail_one(program)
    alone = program.step()
    pair = program.train(range(1, 2)), program.learn(2)
    go_on(make_device())
    assert "seq_id 1 failed" in read_failure(alone)[1]
    assert read_loss(pair[1]) == pytest.approx(train_cleanly(), rel=1e-5)


def test_a_look_without_gradients_that_failed_spoils_no_step() -> None:
    program = Program()
    program.create()
    program.learn(1)
    fail_one(program, forward_only=True)
    program.be_refused(forward_only=True)
    program.learn(5, forward_only=True)
    step = program.step()
    last = program.learn(2)
    take_turns(make_device())
    assert read_answer(step)["metrics"]["grad_norm"] > 0
    assert read_loss(last) == pytest.approx(train_cleanly(), rel=1e-5)


@pytest.mark.parametrize("go_on", [run_calmly, run_killed])
def test_a_step_with_wrong_parameters_can_be_asked_for_again(go_on: Any) -> None:
    program = Program()
    program.create()
    program.learn(1)
    program.be_refused(Kind.OPTIM_STEP)
    wrong = program.step(float("inf"))
    program.step()
    last = program.learn(2)
    go_on(make_device())
    assert "learning_rate" in read_failure(wrong)[1]
    assert read_loss(last) == pytest.approx(train_cleanly(), rel=1e-5)


def test_a_step_that_waited_for_a_number_that_never_came_leaves_no_gradients_behind() -> None:
    program = Program()
    program.create()
    program.learn(0)
    program.seq += 1
    stuck = program.step()
    device = make_device()
    take_turns(device)
    Operation.objects.update(created_at=now() - timedelta(hours=1))
    assert queue.fail_gaps() == 1
    program.train(range(1, 2))
    last = program.learn(2)
    take_turns(device)
    assert "seq_id 2 did not arrive" in read_failure(stuck)[1]
    assert read_loss(last) == pytest.approx(train_cleanly(), rel=1e-5)


def test_a_step_without_any_gradients_is_a_step_on_zeros() -> None:
    program = Program()
    program.create()
    first = program.step()
    program.train(range(1, 2))
    second = program.step()
    take_turns(make_device())
    assert read_answer(first)["metrics"]["grad_norm"] == 0
    assert read_answer(second)["metrics"]["grad_norm"] == 0
    assert Run.objects.get(pk=program.run.pk).step == 3


def test_a_loaded_checkpoint_is_a_new_beginning_also_for_its_gradients() -> None:
    program = Program()
    program.create()
    saved = program.send(Kind.SAVE_WEIGHTS, name="fresh")
    device = make_device()
    take_turns(device)
    fail_one(program)
    checkpoint = read_answer(saved)["checkpoint"]
    program.send(Kind.LOAD_WEIGHTS, checkpoint=checkpoint, optimizer=False)
    program.train(range(1, 2))
    last = program.learn(2)
    take_turns(device)
    assert read_loss(last) == pytest.approx(train_cleanly(), rel=1e-5)
