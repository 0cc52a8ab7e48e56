"""Custom losses on a worker: in the passes of others, again after a crash, and never their harm."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tests.training.tracing import write_graph, write_inputs
from tests.workers.cast import (
    Kind,
    Program,
    make_client_run,
    make_datum,
    make_device,
    read_answer,
    read_loss,
    read_output,
    take_turns,
)
from tests.workers.test_journal import restart
from training.graphs import CALLS_A_TOKEN
from training.types import Datum, ForwardBackward
from webapp.runs.custom_losses import attach_loss, create_custom_loss
from webapp.runs.models import CustomLoss, Metric, Operation
from webapp.wire.passes import encode_forward_backward
from workers.gpu import run_turn

pytestmark = pytest.mark.django_db

RANKS = {"logprobs": 1, "weights": 1}


def negative_likelihood(logprobs: Tensor, weights: Tensor) -> Any:
    loss = -(logprobs * weights).sum()
    return loss, {"custom/share:mean": weights.mean(), "custom/loss:sum": loss}


def break_early(logprobs: Tensor, weights: Tensor) -> Any:
    return (logprobs * weights)[99], {}


def make_loss(program: Program, function: Any = negative_likelihood) -> CustomLoss:
    session = program.run.session
    assert session is not None
    return create_custom_loss(
        session=session,
        custom_loss_seq_id=session.custom_losses.count(),
        name=function.__name__,
        inputs=write_inputs(**RANKS),
        graph=write_graph(function),
    )


def learn(
    program: Program, loss: CustomLoss, seed: int, data: list[Datum] | None = None, **settings: Any
) -> Operation:
    """What `Program.learn` does, by a custom loss."""
    data = data or [make_datum(seed), make_datum(seed + 1000, 7)]
    request = ForwardBackward(data=data, loss_fn="custom", config={"loss_id": loss.pk}, **settings)
    body = encode_forward_backward(program.run.model_id, program.seq, request)
    columns = {"num_tokens": request.num_tokens, "forward_only": request.forward_only}
    return program.submit(Kind.FORWARD_BACKWARD, body, **columns)


def open_program(number: int = 0) -> Program:
    program = Program(run=make_client_run(number))
    program.create()
    return program


def test_a_custom_loss_trains_as_the_loss_that_it_repeats() -> None:
    plain, custom = open_program(0), open_program(1)
    loss = make_loss(custom)
    expected, told = [], []
    for seed in range(4):
        expected.append(plain.learn(seed))
        told.append(learn(custom, loss, seed))
        plain.step()
        custom.step()
    take_turns(make_device())
    assert [read_loss(each) for each in told] == pytest.approx(
        [read_loss(each) for each in expected], rel=1e-5
    )
    metrics = read_output(told[0]).metrics
    assert metrics["custom/loss:sum"] == pytest.approx(metrics["loss:sum"])
    assert metrics["custom/share:mean"] == 1.0


def test_what_a_custom_loss_tells_is_a_curve_of_its_run() -> None:
    program = open_program()
    loss = make_loss(program)
    heavy = make_datum(2)
    heavy = replace(heavy, inputs={**heavy.inputs, "weights": np.full(12, 2.0, np.float32)})
    told = [
        learn(program, loss, 0, data=[make_datum(0)]),
        learn(program, loss, 1, data=[heavy] * 2),
    ]
    program.step()
    take_turns(make_device())
    curves = dict(Metric.objects.filter(run=program.run).values_list("key", "value"))
    outputs = [read_output(each).metrics for each in told]
    assert curves["custom/loss:sum"] == pytest.approx(sum(x["custom/loss:sum"] for x in outputs))
    assert [x["custom/share:mean"] for x in outputs] == [1.0, 2.0]
    assert curves["custom/share:mean"] == pytest.approx(5 / 3)  # one datum, then two


def test_forward_only_leaves_the_step_without_gradients() -> None:
    program = open_program()
    told = learn(program, make_loss(program), 0, forward_only=True)
    update = program.step()
    take_turns(make_device())
    assert read_loss(told) > 0
    assert read_answer(update)["metrics"]["grad_norm"] == 0


def submit_all(program: Program) -> list[Operation]:
    program.create()
    loss = make_loss(program)
    told = []
    for seed in range(3):
        told += [learn(program, loss, seed), learn(program, loss, seed + 10)]
        program.step()
    return told


def test_a_device_that_is_killed_after_every_turn_computes_the_losses_again() -> None:
    undisturbed = submit_all(Program(run=make_client_run(0)))
    take_turns(make_device("calm"))
    told = submit_all(Program(run=make_client_run(1)))
    device = make_device()
    while run_turn(device):
        device = restart(device)
    assert [read_loss(each) for each in told] == pytest.approx(
        [read_loss(each) for each in undisturbed], rel=1e-5
    )


def test_a_loss_that_breaks_is_told_to_its_run_and_does_not_touch_the_others() -> None:
    alone = open_program(0)
    expected = alone.train(range(3))
    take_turns(make_device())
    good, bad = open_program(1), open_program(2)
    broken = make_loss(bad, break_early)
    told, failed = [], []
    for seed in range(3):
        told.append(good.learn(seed))
        good.step()
        failed.append(learn(bad, broken, seed))
    refused = bad.step()
    recovered = learn(bad, make_loss(bad), 0)
    take_turns(make_device("w2"))
    assert [read_loss(each) for each in told] == pytest.approx(
        [read_loss(each) for each in expected], rel=1e-5
    )
    for operation in (*failed, refused):
        operation.refresh_from_db()
        assert (operation.status, operation.error_category) == ("failed", "user")
    assert ": custom loss break_early: node getitem (operator.getitem): " in failed[0].error
    assert "index 99 is out of bounds" in failed[0].error
    assert "are only a part of what was asked for" in refused.error
    assert read_loss(recovered) == pytest.approx(read_loss(told[0]), rel=1e-5)


def test_a_loss_of_many_calls_weighs_as_much_as_the_tokens_that_would_take_as_long() -> None:
    program = open_program()
    loss = make_loss(program)
    plain = ForwardBackward(data=[make_datum(0)] * 64)
    request = ForwardBackward(data=plain.data, loss_fn="custom", config={"loss_id": loss.pk})
    calls = 64 * len(write_graph(negative_likelihood)["nodes"][2:-1])
    assert plain.weight == plain.num_tokens
    assert attach_loss(program.run, request).weight == plain.num_tokens + calls // CALLS_A_TOKEN


def test_a_loss_that_is_gone_fails_its_operation_and_nothing_else() -> None:
    program = open_program()
    loss = make_loss(program)
    operation = learn(program, loss, 0)
    after = program.learn(1)
    loss.delete()
    take_turns(make_device())
    operation.refresh_from_db()
    assert operation.status == Operation.Status.FAILED
    assert "has no such custom loss" in operation.error
    assert np.isfinite(read_loss(after))
