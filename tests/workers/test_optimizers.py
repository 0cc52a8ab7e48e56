"""Runs of another optimizer, and numbers of policy losses, through a device."""

import numpy as np
import pytest

from tests.workers.cast import (
    Kind,
    Program,
    make_client_run,
    make_datum,
    make_device,
    read_loss,
    take_turns,
)
from tests.workers.test_journal import restart
from training.types import Datum, ForwardBackward
from webapp.runs.models import Metric, Operation, Run
from webapp.wire.passes import encode_forward_backward
from workers import journal
from workers.gpu import run_turn

pytestmark = pytest.mark.django_db


def train(program: Program) -> list[Operation]:
    program.create(optimizer="dimuon")
    operations = []
    for number in range(4):
        operations.append(program.learn(number))
        program.step_dimuon()
    return operations


@pytest.mark.parametrize("autosave_seconds", [0.0, 1e9])
def test_a_run_of_dimuon_goes_on_after_every_kill(
    monkeypatch: pytest.MonkeyPatch, autosave_seconds: float
) -> None:
    calm = Program()
    expected = train(calm)
    take_turns(make_device("calm"))
    Run.objects.update(worker="", lease_until=None)
    monkeypatch.setattr(journal, "AUTOSAVE_SECONDS", autosave_seconds)
    program = Program(run=make_client_run(7))
    operations = train(program)
    device = make_device()
    while run_turn(device):
        device = restart(device)
    assert [read_loss(each) for each in operations] == pytest.approx(
        [read_loss(each) for each in expected], rel=1e-5
    )
    assert read_loss(operations[-1]) != pytest.approx(read_loss(operations[0]), rel=1e-3)


def test_a_step_with_parameters_of_another_optimizer_fails_and_the_run_goes_on() -> None:
    program = Program()
    program.create(optimizer="dimuon")
    program.learn(0)
    refused = program.step()
    program.learn(1)
    done = program.step_dimuon()
    take_turns(make_device())
    refused.refresh_from_db()
    done.refresh_from_db()
    assert (refused.status, refused.error_category) == ("failed", "user")
    assert "this run's optimizer is dimuon" in refused.error
    assert done.status == Operation.Status.DONE


def learn_policy(
    program: Program, loss_fn: str, logprob: float, num_sampled: int = 12
) -> Operation:
    plain = make_datum(1)
    advantages = np.arange(12) >= 12 - num_sampled
    values = {"logprobs": np.full(12, logprob), "advantages": advantages}
    floats = {key: value.astype(np.float32) for key, value in values.items()}
    targets = {"target_tokens": plain.inputs["target_tokens"]}
    datum = Datum(tokens=plain.tokens, inputs=targets | floats)
    request = ForwardBackward(data=[datum], loss_fn=loss_fn)
    body = encode_forward_backward(program.run.model_id, program.seq, request)
    return program.submit(Kind.FORWARD_BACKWARD, body, num_tokens=request.num_tokens)


def test_a_policy_curve_is_a_mean_over_sampled_tokens_whatever_else_the_loss_reads() -> None:
    program = Program()
    program.create()
    for parts in ([(-1.0, 2)], [(-3.0, 8)], [(-1.0, 2), (-3.0, 8)]):
        for logprob, num_sampled in parts:
            learn_policy(program, "dro", logprob, num_sampled)
        program.step(learning_rate=0.0)
    take_turns(make_device())
    few, many, both = (read_metrics(program.run, step)["kl_sample_train_k1"] for step in (1, 2, 3))
    assert both == pytest.approx((2 * few + 8 * many) / 10)


def read_metrics(run: Run, step: int) -> dict[str, float]:
    return dict(Metric.objects.filter(run=run, step=step).values_list("key", "value"))


def test_how_far_the_policies_are_apart_is_a_curve_of_the_run() -> None:
    program = Program()
    program.create()
    learn_policy(program, "ppo", -1.0)
    learn_policy(program, "ppo", -3.0)
    program.step()
    learn_policy(program, "ppo", -1000.0)
    program.step()
    program.learn(3)
    program.step()
    take_turns(make_device())
    first, second, third = (read_metrics(program.run, step) for step in (1, 2, 3))
    keys = {"ratio", "clipped", "kl_sample_train_k1", "kl_sample_train_k3"}
    assert keys <= first.keys()
    assert 0 <= first["clipped"] <= 1
    assert second.keys() & keys == {"clipped", "kl_sample_train_k1"}
    assert not third.keys() & keys
