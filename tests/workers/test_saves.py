"""Weights that sampling clients ask for: snapshots stay, inflight ones move on."""

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
from webapp.accounts.models import Actor, Role
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import delete_checkpoint
from webapp.deployments.models import SamplingSession
from webapp.runs import queue
from webapp.runs.models import Run

pytestmark = pytest.mark.django_db


def save(program: Program, number: int, **fields: bool) -> None:
    program.send(
        Kind.SAVE_WEIGHTS_FOR_SAMPLER, sampling_session_seq_id=number, is_ephemeral=True, **fields
    )


def test_inflight_clients_ask_for_the_newest_weights_and_snapshots_for_their_own() -> None:
    program = Program()
    program.create()
    save(program, 0)
    save(program, 1, is_inflight=True)
    program.train(range(1))
    save(program, 2, is_inflight=True)
    take_turns(make_device())
    samplers = SamplingSession.objects.select_related("checkpoint").order_by("seq_id")
    steps = [sampler.checkpoint.step for sampler in samplers if sampler.checkpoint]
    assert steps == [0, 1, 1]
    assert len({sampler.pk for sampler in samplers}) == 3


def test_a_sampler_saved_again_by_its_name_is_the_later_one_and_a_state_is_refused() -> None:
    program = Program()
    program.create()
    program.send(Kind.SAVE_WEIGHTS_FOR_SAMPLER, name="latest", overwrite=True)
    program.train(range(1))
    again = program.send(Kind.SAVE_WEIGHTS_FOR_SAMPLER, name="latest", overwrite=True)
    program.send(Kind.SAVE_WEIGHTS, name="latest")
    refused = program.send(Kind.SAVE_WEIGHTS, name="latest")
    take_turns(make_device())
    assert read_answer(again)["path"].endswith("/sampler_weights/latest")
    alive = program.run.checkpoints.filter(deleted_at=None).order_by("kind")
    assert list(alive.values_list("kind", "step")) == [("sampler", 1), ("training", 1)]
    refused.refresh_from_db()
    assert (refused.status, refused.error_category) == ("failed", "user")
    assert "say overwrite" in refused.error


def test_a_run_goes_on_after_its_parent_was_deleted_and_its_device_lost() -> None:
    program = Program()
    program.create()
    program.train(range(2))
    program.send(Kind.SAVE_WEIGHTS, name="half")
    scored = program.learn(5, forward_only=True)
    take_turns(make_device())
    parent = Checkpoint.objects.get()

    branch = Program(run=make_client_run(1))
    Run.objects.filter(pk=branch.run.pk).update(parent=parent)
    branch.send(Kind.LOAD_WEIGHTS, checkpoint=parent.pk, optimizer=True)
    take_turns(make_device("w2"))
    owner = parent.run.created_by
    assert owner is not None
    actor = Actor(user=owner, project=parent.project, role=Role.OWNER)
    delete_checkpoint(actor=actor, checkpoint=parent)
    queue.release_worker(worker="w2")
    again = branch.learn(5, forward_only=True)
    take_turns(make_device("w3"))
    assert read_loss(again) == pytest.approx(read_loss(scored), rel=1e-6)


def test_a_run_takes_the_weights_of_an_adapter_into_its_own_also_after_a_crash() -> None:
    program = Program()
    program.create()
    program.train(range(2))
    program.send(Kind.SAVE_WEIGHTS_FOR_SAMPLER, name="source")
    scored = program.learn(5, forward_only=True)
    take_turns(make_device())
    source = Checkpoint.objects.get()

    branch = Program(run=make_client_run(1))
    branch.create(seed=8)
    load = branch.send(Kind.LOAD_WEIGHTS, checkpoint=source.pk, optimizer=False, is_adapter=True)
    take_turns(make_device("w2"))
    assert read_answer(load)["type"] == "load_adapter"
    queue.release_worker(worker="w2")
    again = branch.learn(5, forward_only=True)
    take_turns(make_device("w3"))
    assert read_loss(again) == pytest.approx(read_loss(scored), rel=1e-6)
