"""A model with several names: each client gets the name back that it asked for."""

import pytest

from tests.webapp.tinker.conftest import Program
from webapp.checkpoints.models import Checkpoint
from webapp.fleet.models import BaseModel, BaseModelName
from webapp.runs.models import Run

ALIAS = "acme/Alias-1B"


@pytest.fixture
def base_model(base_model: BaseModel) -> BaseModel:
    BaseModelName.objects.create(base_model=base_model, name=ALIAS)
    return base_model


def open_by(program: Program, name: str, session: str, number: int = 0) -> str:
    fields = {"session_id": session, "model_seq_id": number, "base_model": name}
    return str(program.post("create_model", **fields)["model_id"])


@pytest.fixture
def checkpoint(program: Program, base_model: BaseModel) -> Checkpoint:
    """Of a run that was opened by the alias."""
    model_id = open_by(program, ALIAS, program.open_session())
    run = Run.objects.get()
    return Checkpoint.objects.create(
        project=run.project,
        run=run,
        base_model=base_model,
        name=model_id[-1],
        kind=Checkpoint.Kind.TRAINING,
        seq=1,
        step=1,
        path="x",
        size_bytes=1,
        rank=run.rank,
        has_optimizer=True,
    )


def test_a_model_is_described_under_the_name_it_was_created_by(
    program: Program, base_model: BaseModel
) -> None:
    session = program.open_session()
    for number, name in enumerate((base_model.name, ALIAS)):
        info = program.post("get_info", model_id=open_by(program, name, session, number))
        assert (info["model_name"], info["model_data"]["model_name"]) == (name, name)


def test_a_training_run_is_listed_under_the_name_it_was_created_by(
    program: Program, checkpoint: Checkpoint
) -> None:
    (run,) = program.read("training_runs")["training_runs"]
    assert run["base_model"] == ALIAS
    info = program.post("weights_info", tinker_path=checkpoint.tinker_path)
    assert info["base_model"] == ALIAS


def test_a_model_from_a_checkpoint_keeps_the_name_unless_it_asks_for_another(
    program: Program, checkpoint: Checkpoint, base_model: BaseModel
) -> None:
    load = {"session_id": program.open_session(), "path": checkpoint.tinker_path}
    for number, asked in enumerate(({}, {"base_model": base_model.name})):
        promise = program.post("load_weights", **load, **asked, model_seq_id=number)
        info = program.post("get_info", model_id=promise["model_id"])
        assert info["model_name"] == asked.get("base_model", ALIAS)


def test_a_sampling_client_of_a_checkpoint_gets_the_name_of_its_run(
    program: Program, checkpoint: Checkpoint
) -> None:
    sampler = program.post(
        "create_sampling_session",
        session_id=program.open_session(),
        sampling_session_seq_id=0,
        model_path=checkpoint.tinker_path,
    )
    found = program.read(f"samplers/{sampler['sampling_session_id']}")
    assert found["base_model"] == ALIAS
