"""Turns of a device, one by one, with the tiny model."""

from pathlib import Path
from typing import Any

import pytest

from tests.workers.cast import (
    TINY,
    Kind,
    Program,
    make_client_run,
    make_datum,
    make_device,
    read_answer,
    read_loss,
    take_turns,
)
from training.engine.core import Engine
from training.engine.cycle import Pack
from training.errors import InvalidInput
from training.types import AdamParams, ForwardBackward, LoraSpec
from webapp.fleet.models import BaseModel, Worker
from webapp.runs import queue
from webapp.runs.models import Metric, Operation, Run
from webapp.wire.passes import encode_forward_backward
from workers import journal
from workers.device import beat, register, unregister
from workers.execute import Held
from workers.gpu import gather, run_turn

pytestmark = pytest.mark.django_db


def train_directly(seeds: range) -> list[float]:
    """The same steps on the engine itself."""
    engine = Engine.load(TINY)
    engine.create_adapter("it", LoraSpec(rank=4, seed=3))
    losses = []
    for seed in seeds:
        data = [make_datum(seed), make_datum(seed + 1000, 7)]
        output = engine.forward_backward({"it": ForwardBackward(data=data)})["it"]
        assert not isinstance(output, InvalidInput)
        losses.append(output.metrics["loss:sum"])
        engine.optim_step("it", AdamParams(learning_rate=1e-2))
    return losses


def test_a_programs_loop_gives_the_losses_of_the_bare_engine() -> None:
    program = Program()
    program.create()
    operations = program.train(range(4))
    take_turns(make_device())
    losses = [read_loss(operation) for operation in operations]
    assert losses == pytest.approx(train_directly(range(4)), rel=1e-5)
    assert losses[0] != losses[1]


def test_each_optimizer_step_leaves_its_numbers() -> None:
    program = Program()
    program.create()
    program.learn(0)
    program.learn(1)
    step = program.step(3e-4)
    take_turns(make_device())
    metrics = dict(Metric.objects.filter(run=program.run, step=1).values_list("key", "value"))
    assert metrics["num_tokens"] == 38
    assert metrics["learning_rate"] == 3e-4
    assert metrics["tokens_per_second"] > 0
    assert metrics["grad_norm"] == read_answer(step)["metrics"]["grad_norm"]
    losses = sum(read_loss(each) for each in Operation.objects.filter(kind=Kind.FORWARD_BACKWARD))
    assert metrics["loss"] == pytest.approx(losses / 38)
    program.run.refresh_from_db()
    assert (program.run.step, program.run.num_tokens) == (1, 38)
    assert program.run.last_loss == pytest.approx(metrics["loss"])


def test_the_curve_of_slopes_is_a_mean_over_tokens() -> None:
    """A program that computes its loss by itself sends weights of both signs."""
    program = Program()
    program.create()
    datum = make_datum(0)
    datum.inputs["weights"][:] = [0.1, -0.099] * 6
    request = ForwardBackward(data=[datum])
    body = encode_forward_backward(program.run.model_id, program.seq, request)
    operation = program.submit(Kind.FORWARD_BACKWARD, body, num_tokens=request.num_tokens)
    program.step()
    take_turns(make_device())
    program.run.refresh_from_db()
    assert program.run.last_loss == pytest.approx(read_loss(operation) / 12)


def test_forward_only_leaves_no_gradient_and_counts_for_no_step() -> None:
    first, second = Program(), Program(run=make_client_run(1))
    for program in (first, second):
        program.create()
    first.learn(5, forward_only=True)
    for program in (first, second):
        program.learn(0)
        program.step()
    last = [program.learn(1) for program in (first, second)]
    take_turns(make_device())
    assert read_loss(last[0]) == pytest.approx(read_loss(last[1]), rel=1e-5)
    metrics = Metric.objects.filter(key="num_tokens", step=1).values_list("value", flat=True)
    assert list(metrics) == [19, 19]


def test_two_runs_share_a_pass_and_give_what_each_gives_alone() -> None:
    alone = Program()
    alone.create(seed=7)
    expected = alone.train(range(3))
    take_turns(make_device())

    together = [Program(run=make_client_run(1)), Program(run=make_client_run(2))]
    device = make_device("w2")
    for program, seed in zip(together, (7, 8), strict=True):
        program.create(seed=seed)
    operations = [program.train(range(3)) for program in together]
    num_turns = take_turns(device)
    losses = [read_loss(operation) for operation in operations[0]]
    assert losses == pytest.approx([read_loss(operation) for operation in expected], rel=1e-4)
    assert num_turns == 2 + 3 + 6  # creations, shared passes, steps
    assert read_loss(operations[1][1]) != losses[1]  # a new adapter changes nothing yet


def test_one_bad_operation_fails_alone_and_says_why() -> None:
    good, bad = Program(), Program(run=make_client_run(1))
    for program in (good, bad):
        program.create()
    operations = [good.learn(0), bad.learn(0, loss_fn="no_such_loss")]
    after = bad.learn(1)
    take_turns(make_device())
    assert read_loss(operations[0]) > 0
    operations[1].refresh_from_db()
    assert operations[1].status == Operation.Status.FAILED
    assert operations[1].error_category == "user"
    assert "no_such_loss" in operations[1].error
    assert read_loss(after) > 0


def test_a_fault_of_the_server_has_a_number_and_spoils_no_other_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    programs = [Program(), Program(run=make_client_run(1))]
    for program in programs:
        program.create()
        program.learn(0)
    device = make_device()
    take_turns(device)
    first, second = (program.learn(1) for program in programs)
    broken = programs[1].run.pk
    run_pack = Engine.run_pack

    def break_one(engine: Engine, pack: Pack, tallies: Any) -> None:
        run_pack(engine, pack, tallies)
        first = make_datum(1).tokens[0]
        if any(item.run == broken and item.datum.tokens[0] == first for item in pack.items):
            raise RuntimeError("out of memory")

    monkeypatch.setattr(Engine, "run_pack", break_one)
    take_turns(device)
    second.refresh_from_db()
    assert (second.status, second.error_category) == (Operation.Status.FAILED, "server")
    assert "internal error" in second.error
    assert "memory" not in second.error
    monkeypatch.undo()
    steps = [program.step() for program in programs]
    programs[1].train(range(1))
    ends = [program.learn(2) for program in programs]
    take_turns(device)
    steps[1].refresh_from_db()
    assert "seq_id 2 failed" in steps[1].error
    undisturbed = [Program(run=make_client_run(number)) for number in (2, 3)]
    for program, seeds in zip(undisturbed, ([0, 1], [0]), strict=True):
        program.create()
        for seed in seeds:
            program.learn(seed)
        program.step()
    expected = [program.learn(2) for program in undisturbed]
    take_turns(make_device("w2"))
    assert read_loss(first) > 0
    assert [read_loss(end) for end in ends] == pytest.approx(
        [read_loss(operation) for operation in expected], rel=1e-4
    )


def test_a_step_without_finite_gradients_is_refused_and_weights_stay() -> None:
    program = Program()
    program.create()
    program.learn(0)
    refused = program.step(float("inf"))
    take_turns(make_device())
    refused.refresh_from_db()
    assert (refused.status, refused.error_category) == (Operation.Status.FAILED, "user")
    assert "learning_rate" in refused.error
    assert Run.objects.get(pk=program.run.pk).step == 0


def test_turns_are_fair_by_tokens() -> None:
    greedy, modest = Program(), Program(run=make_client_run(1))
    for program in (greedy, modest):
        program.create()
    device = make_device()
    take_turns(device)
    for seed in range(6):
        greedy.learn(seed)
    for _ in range(3):
        run_turn(device)
    late = modest.learn(0)
    run_turn(device)
    late.refresh_from_db()
    assert late.status == Operation.Status.DONE
    waiting = Operation.objects.filter(run=greedy.run).exclude(status=Operation.Status.DONE)
    assert waiting.exists()


def test_a_worker_that_lost_its_lease_stores_nothing_and_forgets_the_weights() -> None:
    program = Program()
    program.create()
    device = make_device("old")
    take_turns(device)
    operation = program.learn(0)
    run = Run.objects.get(pk=program.run.pk)
    assert device.held.keys() == {run.pk}
    queue.lease_run(run, worker=device.name)
    device.take(run, queue.next_operations(run, worker=device.name))
    Run.objects.filter(pk=run.pk).update(worker="new")
    run_turn(device)
    operation.refresh_from_db()
    assert operation.result is None
    assert not device.held
    assert not device.pending


def test_a_base_model_that_was_evicted_comes_back_with_its_runs(tmp_path: Path) -> None:
    program = Program()
    program.create()
    program.train(range(2))
    device = make_device()
    take_turns(device)
    base_model = BaseModel.objects.get()
    device.close(base_model.pk)
    assert not device.held
    after = program.learn(2)
    take_turns(device)
    assert read_loss(after) == pytest.approx(train_directly(range(3))[2], rel=1e-5)


def test_a_worker_says_which_model_it_is_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    load = Engine.load

    def look_and_load(*arguments: Any, **settings: Any) -> Engine:
        said.append(Worker.objects.get().holds["loading"])
        return load(*arguments, **settings)

    monkeypatch.setattr(Engine, "load", look_and_load)
    device = make_device()
    register(device)
    Program().create()
    take_turns(device)
    beat(device)
    assert said == ["tiny"]
    assert Worker.objects.get().holds["loading"] == ""


def test_a_worker_says_whose_weights_it_is_restoring(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    restore = journal.restore

    def look_and_restore(run: Run, engine: Engine) -> Held:
        said.append(Worker.objects.get().holds["restoring"])
        return restore(run, engine)

    monkeypatch.setattr(journal, "restore", look_and_restore)
    device, program = make_device(), Program()
    register(device)
    program.create()
    program.train(range(1))
    take_turns(device)
    device.evict(program.run.pk)
    program.learn(1)
    take_turns(device)
    assert said == ["", program.run.pk]  # a new one has nothing to restore
    assert Worker.objects.get().holds["restoring"] == ""


def test_an_old_worker_that_is_still_ending_stores_nothing_for_the_new_one_of_its_name() -> None:
    program = Program()
    program.create()
    program.learn(0)
    old = make_device("w1")
    run_turn(old)
    gather(old)  # begins the forward_backward
    new = make_device("w1")
    register(new)
    program.step()
    again = program.learn(1)
    take_turns(new)
    unregister(old)
    assert Run.objects.get(pk=program.run.pk).worker == new.name
    take_turns(old)
    assert read_loss(again) == pytest.approx(train_directly(range(2))[1], rel=1e-5)
