"""A model's optimizer: chosen once, told to the SDK, never mixed with the words of another."""

import json
from typing import Any

import pytest

from tests.webapp.cast import sign_in
from tests.webapp.tinker.conftest import Program
from tests.webapp.tinker.test_sampling import save
from webapp.checkpoints.models import Checkpoint
from webapp.fleet.models import BaseModel
from webapp.runs.models import Operation, Run

DIMUON = {"type": "dimuon", "version": 1}
STEP = {"type": "dimuon", "learning_rate": 0.1, "grad_clip_norm": -1.0, "beta1": 0.8}


def create(program: Program, base_model: BaseModel, config: Any) -> Any:
    return program.post(
        "create_model",
        session_id=program.open_session(),
        model_seq_id=0,
        base_model=base_model.name,
        optimizer_config=config,
    )


@pytest.fixture
def muon_id(program: Program, base_model: BaseModel) -> str:
    return str(create(program, base_model, DIMUON)["model_id"])


def read_payload(kind: str) -> Any:
    return json.loads(bytes(Operation.objects.get(kind=kind).payload or b""))


def test_the_optimizer_is_told_and_its_steps_are_kept(program: Program, muon_id: str) -> None:
    told = program.post("get_info", model_id=muon_id)
    assert told["optimizer_config"] == DIMUON
    assert read_payload("create_model")["optimizer"] == "dimuon"
    program.post("optim_step", model_id=muon_id, seq_id=1, optimizer_params=STEP)
    assert program.status == 200
    expected = {"learning_rate": 0.1, "grad_clip_norm": -1.0, "beta1": 0.8}
    assert read_payload("optim_step") == {"dimuon_params": expected}
    checkpoint = save(muon_id, program, kind=Checkpoint.Kind.TRAINING, has_optimizer=True)
    info = program.post("weights_info", tinker_path=checkpoint.tinker_path)
    assert info["optimizer_config"] == DIMUON


def test_adam_is_what_a_model_has_unless_it_says_otherwise(program: Program, model_id: str) -> None:
    told = program.post("get_info", model_id=model_id)
    assert told["optimizer_config"] == {"type": "adamw"}


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({}, "adam_params are for the optimizer adamw, but this model was created with dimuon"),
        ({"optimizer_params": {"type": "lion"}}, "for the optimizer lion, but this model"),
        ({"optimizer_params": {"type": "dimuon"}}, "optimizer_params.learning_rate is missing"),
        ({"optimizer_params": STEP | {"learning_rate": -1}}, "learning_rate is -1.0"),
        ({"optimizer_params": STEP | {"beta1": 1}}, "optimizer_params.beta1 is 1.0"),
        ({"optimizer_params": STEP | {"beta1": "x"}}, "optimizer_params.beta1"),
        ({"optimizer_params": STEP | {"damping": 1}}, "optimizer_params.damping is unknown"),
    ],
)
def test_parameters_that_are_not_dimuons_are_refused(
    program: Program, muon_id: str, params: dict[str, Any], complaint: str
) -> None:
    answer = program.post("optim_step", model_id=muon_id, seq_id=1, **params)
    assert program.status == 400
    assert complaint in answer["detail"]


def test_a_model_of_adam_takes_no_parameters_of_dimuon(program: Program, model_id: str) -> None:
    answer = program.post("optim_step", model_id=model_id, seq_id=1, optimizer_params=STEP)
    assert program.status == 400
    assert "this model was created with adamw: send adam_params" in answer["detail"]


@pytest.mark.parametrize("config", [{"type": "sgd"}, {"type": "dimuon", "version": 2}])
def test_an_optimizer_that_is_not_there_is_refused(
    program: Program, base_model: BaseModel, config: Any
) -> None:
    answer = create(program, base_model, config)
    assert program.status == 400
    assert "optimizer_config" in answer["detail"]


def branch(program: Program, checkpoint: Checkpoint, **fields: Any) -> Any:
    return program.post(
        "load_weights",
        session_id=program.open_session(),
        model_seq_id=0,
        path=checkpoint.tinker_path,
        **fields,
    )


def test_a_branch_has_its_parents_optimizer_or_the_one_it_asks_for(
    program: Program, muon_id: str
) -> None:
    saved = save(muon_id, program, kind=Checkpoint.Kind.TRAINING, has_optimizer=True)
    found = {}
    asked: dict[str, dict[str, Any]] = {
        "with": {"optimizer": True},
        "without": {"optimizer": False},
        "chosen": {"optimizer": False, "optimizer_config": DIMUON},
    }
    for name, fields in asked.items():
        model_id = branch(program, saved, **fields)["model_id"]
        found[name] = program.post("get_info", model_id=model_id)["optimizer_config"]["type"]
    assert found == {"with": "dimuon", "without": "adamw", "chosen": "dimuon"}


def test_the_state_of_one_optimizer_is_not_loaded_into_another(
    program: Program, muon_id: str, base_model: BaseModel
) -> None:
    saved = save(muon_id, program, kind=Checkpoint.Kind.TRAINING, has_optimizer=True)
    answer = branch(program, saved, optimizer=True, optimizer_config={"type": "adamw"})
    assert program.status == 400
    assert "holds the state of dimuon, not of adamw" in answer["detail"]
    other = program.open_model(base_model, rank=saved.rank)
    fields = {"model_id": other, "seq_id": 1, "path": saved.tinker_path}
    answer = program.post("load_weights", **fields, optimizer=True)
    assert program.status == 400
    assert "this model has adamw: load its weights alone" in answer["detail"]
    program.post("load_weights", **fields | {"seq_id": 2}, optimizer=False)
    assert program.status == 200


def test_what_is_our_own_reading_is_said_on_the_runs_page(program: Program, muon_id: str) -> None:
    run = Run.objects.get()
    lines = [line.text for line in run.log_lines.all()]
    assert any(line.startswith("This run uses dimuon: Hone's own reading") for line in lines)
    page = sign_in(program.actor).get(f"/runs/{run.pk}/?tab=config").content.decode()
    assert "Hone&#x27;s own reading: Muon" in page
    assert program.read("get_server_capabilities")["optimizers"] == ["adamw", "dimuon"]
