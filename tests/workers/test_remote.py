"""Verbs over the log: in order, answered from it where they were asked before."""

import pytest

from tests.workers.cast import LORA, make_client_run, make_datum, make_device
from tests.workers.test_recipe import TurnWaiter
from training.errors import InvalidInput
from training.recipes.passes import FORWARD_CONFIG
from training.types import AdamParams
from webapp.runs.models import Operation, Run
from workers.device import Device
from workers.remote import OperationFailed, RemoteModel

pytestmark = pytest.mark.django_db


@pytest.fixture
def device() -> Device:
    return make_device()


@pytest.fixture
def run() -> Run:
    run = make_client_run()
    run.rank, run.lora = 4, {key: value for key, value in LORA.items() if key != "rank"}
    run.save()
    return run


def go_on() -> None:
    """Nobody has pressed anything."""


def open_model(run: Run, device: Device) -> RemoteModel:
    return RemoteModel.open(run, waiter=TurnWaiter(device=device), keep_going=go_on)


def test_verbs_are_executed_in_the_order_they_were_called(run: Run, device: Device) -> None:
    model = open_model(run, device)
    model.create()
    first = model.forward_backward([make_datum(0)], "cross_entropy", config=FORWARD_CONFIG)
    step = model.optim_step(AdamParams(learning_rate=1e-2))
    again = model.forward_backward([make_datum(0)], "cross_entropy", forward_only=True)
    assert again.result().metrics["loss:sum"] < first.result().metrics["loss:sum"]
    assert step.result().metrics["grad_norm"] > 0
    assert len(again.result().logprobs[0]) == 12
    assert model.num_steps == 1


def test_what_was_saved_is_described_as_the_engine_wrote_it(run: Run, device: Device) -> None:
    model = open_model(run, device)
    model.create()
    saved = model.save_weights("half", kind="training").result()
    assert saved.has_optimizer
    assert len(saved.probe.tokens) == len(saved.probe.logprobs) + 1
    checkpoint = model.save_checkpoint("look", kind="sampler", ttl_seconds=60).result()
    assert (checkpoint.digest, checkpoint.is_ephemeral) == (saved.digest, True)
    model.load_weights(checkpoint.pk, optimizer=False).result()
    with pytest.raises(InvalidInput, match="no optimizer"):
        model.load_weights(checkpoint.pk, optimizer=True).result()


def test_a_recipe_that_begins_again_is_answered_from_the_log(run: Run, device: Device) -> None:
    model = open_model(run, device)
    model.create()
    model.forward_backward([make_datum(0)], "cross_entropy")
    before = model.optim_step(AdamParams(learning_rate=1e-2)).result()

    replayed = open_model(run, device)
    assert replayed.is_replaying
    assert replayed.create().was_recorded
    replayed.forward_backward([make_datum(0)], "cross_entropy")
    again = replayed.optim_step(AdamParams(learning_rate=5e-2))
    assert again.was_recorded
    assert again.result() == before
    assert not replayed.is_replaying
    new = replayed.forward_backward([make_datum(1)], "cross_entropy")
    assert not new.was_recorded
    assert new.result().metrics["loss:sum"] > 0
    assert Operation.objects.count() == 4


def test_a_recipe_that_asks_for_something_else_than_its_log_is_a_bug(
    run: Run, device: Device
) -> None:
    open_model(run, device).create()
    with pytest.raises(RuntimeError, match="asks for optim_step where its log has"):
        open_model(run, device).optim_step(AdamParams())


def test_the_callers_mistakes_and_the_servers_are_told_apart(run: Run, device: Device) -> None:
    model = open_model(run, device)
    model.create()
    with pytest.raises(InvalidInput, match="nonsense"):
        model.forward_backward([make_datum(0)], "nonsense").result()
    broken = model.optim_step(AdamParams())
    Operation.objects.filter(kind="optim_step").update(
        status="failed", error="internal error 7", error_category="server"
    )
    with pytest.raises(OperationFailed, match="internal error 7"):
        broken.result()


def test_a_result_is_waited_for_no_longer_than_asked(run: Run, device: Device) -> None:
    model = open_model(run, device)
    with pytest.raises(TimeoutError, match="no worker answered"):
        model.create().result(timeout=-1)
