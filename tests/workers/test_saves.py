"""Weights that sampling clients ask for: snapshots stay, inflight ones move on."""

from pathlib import Path

import pytest
from pytest_django import Settings

from tests.workers.cast import Kind, Program, make_device, read_answer, take_turns
from webapp.deployments.models import SamplingSession

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, settings: Settings) -> None:
    settings.HONE_HOME = tmp_path


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
