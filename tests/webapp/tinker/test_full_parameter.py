"""Full-parameter runs on the Tinker wire: not begun there, but listed, sampled and gone on with."""

from pathlib import Path

import pytest
from pytest_django import Settings

from tests.webapp.tinker.conftest import Program
from tests.webapp.tinker.test_weights import load, read_payload, register
from webapp.checkpoints.models import Checkpoint
from webapp.runs.models import Origin, Run

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, settings: Settings) -> None:
    settings.HONE_HOME = tmp_path


@pytest.fixture
def checkpoint(program: Program, model_id: str) -> Checkpoint:
    """Of a run that was launched in the browser."""
    base_model = Run.objects.get().base_model
    run = Run.objects.create(
        project=program.actor.project,
        name="all of it",
        origin=Origin.BROWSER,
        base_model=base_model,
        rank=0,
    )
    return register(run)


def test_a_program_cannot_begin_a_run_of_all_weights(program: Program, model_id: str) -> None:
    told = program.post(
        "create_model",
        session_id=program.open_session(),
        model_seq_id=0,
        base_model="tiny-chatml-1m",
        lora_config={"rank": 0},
    )
    assert program.status == 400
    assert told["detail"].startswith("lora_config.rank must be positive: rank is 0")


def test_listings_say_that_it_is_no_lora(program: Program, checkpoint: Checkpoint) -> None:
    listed = program.read(f"training_runs/{checkpoint.run_id}")
    assert (listed["is_lora"], listed["lora_rank"]) == (False, None)
    info = program.post("weights_info", tinker_path=checkpoint.tinker_path)
    assert (info["is_lora"], info["lora_rank"]) == (False, None)
    assert [info[flag] for flag in ("train_unembed", "train_mlp", "train_attn")] == [True] * 3


def test_a_training_client_goes_on_from_its_checkpoint(
    program: Program, checkpoint: Checkpoint
) -> None:
    told = load(program, checkpoint, optimizer=True)
    assert program.status == 200
    branch = Run.objects.get(parent=checkpoint)
    assert (branch.rank, branch.lora, branch.with_optimizer) == (0, {}, True)
    assert read_payload(branch, 0)["checkpoint"] == checkpoint.pk
    info = program.post("get_info", model_id=told["model_id"])
    assert (info["is_lora"], info["lora_rank"]) == (False, None)


def test_an_adapter_does_not_take_all_weights_nor_they_an_adapters(
    program: Program, model_id: str, checkpoint: Checkpoint
) -> None:
    program.post(
        "load_weights", model_id=model_id, seq_id=1, path=checkpoint.tinker_path, optimizer=False
    )
    assert program.status == 400
    full_id = load(program, checkpoint)["model_id"]
    adapter = register(Run.objects.exclude(rank=0).get(parent=None))
    told = program.post(
        "load_weights", model_id=full_id, seq_id=1, path=adapter.tinker_path, optimizer=False
    )
    assert program.status == 400
    assert "holds an adapter, this model has all weights" in told["detail"]


def test_a_sampling_client_opens_on_its_checkpoint(
    program: Program, checkpoint: Checkpoint
) -> None:
    told = program.post(
        "create_sampling_session",
        session_id=program.open_session(),
        sampling_session_seq_id=0,
        model_path=checkpoint.tinker_path,
    )
    assert program.status == 200
    assert told["sampling_session_id"]
