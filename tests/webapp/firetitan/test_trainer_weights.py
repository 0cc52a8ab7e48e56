"""Saves and loads on the trainer's wire: names, kinds, and whose weights may be taken over."""

import json
from typing import Any

import pytest

from tests.webapp.firetitan.conftest import Program
from tests.webapp.firetitan.trainers import Trainer, make_job
from training.types import Probe, SavedWeights
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import register_checkpoint
from webapp.firetitan.models import PromotedModel
from webapp.fleet.models import BaseModel
from webapp.runs.models import Operation, Run

Kind, Status = Operation.Kind, Operation.Status


@pytest.fixture
def trainer(program: Program, base_model: BaseModel) -> Trainer:
    return open_trainer(program, base_model, "j1")


def open_trainer(
    program: Program, base_model: BaseModel, job_id: str, rank: int = 8, **fields: Any
) -> Trainer:
    made = Trainer(program=program, job=make_job(program, base_model, job_id=job_id))
    made.open_session()
    made.open_model(rank=rank, **fields)
    return made


def save(run: Run, name: str = "step-4", kind: str = "training", **columns: Any) -> Checkpoint:
    saved = SavedWeights(
        digest="d" * 64,
        size_bytes=10,
        has_optimizer=kind == "training",
        probe=Probe(tokens=(1, 2), logprobs=(-1.0,)),
    )
    columns = {"seq": Checkpoint.objects.count() + 50, "step": 2, "saved": saved, **columns}
    return register_checkpoint(run=run, kind=kind, name=name, path="checkpoints/x", **columns)


def read_payload(trainer: Trainer) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(bytes(trainer.last.payload or b""))
    return payload


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("dcp-1", "dcp-1"),
        ("train_state_step_100", "train-state-step-100"),
        ("Final.v2", "final-v2"),
        ("_x_", "x"),
        ("a" * 90, "a" * 63),
    ],
)
def test_a_state_gets_a_name_that_the_sdk_loads_again(
    trainer: Trainer, name: str, label: str
) -> None:
    trainer.ask("save_weights", path=name, overwrite=False)
    payload = read_payload(trainer)
    assert (payload["name"], payload["overwrite"]) == (label, False)
    assert payload["answer"] == {"path": label}


@pytest.mark.parametrize("name", ["", "///", "é", "a/b", None, 5])
def test_a_state_without_a_name_is_refused(trainer: Trainer, name: Any) -> None:
    answer = trainer.ask("save_weights", path=name)
    assert (trainer.status, "path" in answer["message"]) == (400, True)


def test_an_older_sdks_lifetime_is_kept(trainer: Trainer) -> None:
    trainer.ask("save_weights", path="a", ttl_seconds=7200)
    assert read_payload(trainer)["ttl_seconds"] == 7200


def test_a_snapshot_keeps_its_name_and_what_it_was_called(trainer: Trainer) -> None:
    trainer.ask(
        "save_weights_for_sampler",
        path="step-1-3296a737",
        checkpoint_type="base",
        metadata={"decision_calibration": {"a": 1}},
    )
    payload = read_payload(trainer)
    assert payload["name"] == "step-1-3296a737"
    assert payload["answer"] == {"path": "step-1-3296a737"}
    assert payload["user_metadata"] == {
        "checkpoint_type": "base",
        "decision_calibration": {"a": 1},
    }


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"checkpoint_type": "whole"}, "checkpoint_type is 'whole'"),
        ({"checkpoint_type": "merged_base"}, "merged_base needs an adapter that was trained"),
        ({"export_precision": "bf16"}, "export_precision bf16 is not offered here: send source"),
        ({"export_precision": "fp4"}, "export_precision is 'fp4'"),
        ({"export_precision": "nvfp4"}, "export_precision nvfp4 is not offered"),
        ({"path": None}, "path is required"),
        ({"metadata": [1]}, "metadata is [1]"),
    ],
)
def test_a_snapshot_that_cannot_be_made_is_refused(
    trainer: Trainer, fields: dict[str, Any], complaint: str
) -> None:
    answer = trainer.ask("save_weights_for_sampler", **{"path": "a", **fields})
    assert (trainer.status, complaint in answer["message"]) == (400, True)
    assert trainer.last.status == Status.REFUSED


def test_a_merged_model_of_an_adapter_is_made_of_what_was_saved(trainer: Trainer) -> None:
    trainer.ask("optim_step", adam_params={})
    wish = {"checkpoint_type": "merged_base", "export_precision": "bf16"}
    trainer.ask("save_weights_for_sampler", path="m", **wish)
    assert trainer.status == 200
    payload = read_payload(trainer)
    assert (payload["checkpoint_type"], payload["merge"]) == ("base", "bf16")
    assert payload["user_metadata"] == {"checkpoint_type": "merged_base"}
    refused = trainer.ask(
        "save_weights_for_sampler", path="n", **{**wish, "export_precision": "fp4"}
    )
    assert (trainer.status, "export_precision" in refused["message"]) == (400, True)


def test_all_weights_have_a_base_and_deltas(program: Program, base_model: BaseModel) -> None:
    trainer = open_trainer(program, base_model, "j1", rank=0)
    for kind in ("base", "delta", "merged_base"):
        trainer.ask("save_weights_for_sampler", path=kind, checkpoint_type=kind)
        assert trainer.status == 200
    assert read_payload(trainer)["checkpoint_type"] == "base"  # nothing to merge


def test_a_state_of_the_same_model_is_taken_first(trainer: Trainer) -> None:
    first = save(trainer.run)
    trainer.open_model(1, rank=8)
    other = Run.objects.get(model_seq_id=1)
    newest = save(other)
    trainer.model_id = trainer.run.model_id
    trainer.ask("load_weights", path="step-4", optimizer=True)
    payload = read_payload(trainer)
    assert payload["checkpoint"] == first.pk
    assert (payload["optimizer"], payload["answer"]) == (True, {"path": "step-4"})
    trainer.model_id = other.model_id
    trainer.post("load_weights", model_id=other.model_id, seq_id=1, path="step-4", optimizer=False)
    operation = Operation.objects.get(run=other, seq=1)
    assert json.loads(bytes(operation.payload or b""))["checkpoint"] == newest.pk


def test_a_state_of_a_model_that_is_gone_is_loaded_by_its_jobs_next_one(trainer: Trainer) -> None:
    saved = save(trainer.run)
    trainer.open_session()
    trainer.open_model()
    trainer.seq = 0
    trainer.ask("load_weights", path="step-4", optimizer=False)
    assert read_payload(trainer)["checkpoint"] == saved.pk


def test_a_state_of_another_job_is_named_with_it(
    trainer: Trainer, program: Program, base_model: BaseModel
) -> None:
    saved = save(open_trainer(program, base_model, "j0").run)
    trainer.ask("load_weights", path="cross_job://j0/step-4", optimizer=True)
    payload = read_payload(trainer)
    assert payload["checkpoint"] == saved.pk
    assert payload["answer"] == {"path": "cross_job://j0/step-4"}


@pytest.mark.parametrize(
    "path",
    ["step-5", "cross_job://j1/step-5", "cross_job://j9/step-4", "cross_job://", "tinker://x", ""],
)
def test_a_state_that_is_not_there_is_not_found(trainer: Trainer, path: str) -> None:
    save(trainer.run)
    trainer.ask("load_weights", path=path, optimizer=False)
    assert trainer.status == 404


def test_another_projects_states_are_not_there(
    trainer: Trainer, stranger: Program, base_model: BaseModel
) -> None:
    save(open_trainer(stranger, base_model, "theirs").run)
    trainer.ask("load_weights", path="cross_job://theirs/step-4", optimizer=False)
    assert trainer.status == 404


def test_a_state_of_another_shape_is_refused_with_the_difference(
    trainer: Trainer, program: Program, base_model: BaseModel
) -> None:
    save(open_trainer(program, base_model, "j0", rank=4).run)
    answer = trainer.ask("load_weights", path="cross_job://j0/step-4", optimizer=False)
    assert (trainer.status, "has rank 4" in answer["message"]) == (400, True)


def test_a_snapshot_is_no_state(trainer: Trainer) -> None:
    save(trainer.run, kind="sampler")
    trainer.ask("load_weights", path="step-4", optimizer=False)
    assert trainer.status == 404
    assert trainer.read("list_checkpoints") == {"checkpoints": []}


def test_the_list_has_the_states_of_all_the_jobs_models_by_name(trainer: Trainer) -> None:
    save(trainer.run, "step-4")
    save(trainer.run, "step-2")
    trainer.open_model(1)
    save(Run.objects.get(model_seq_id=1), "step-4")
    assert trainer.read("list_checkpoints") == {"checkpoints": ["step-2", "step-4"]}


def test_an_adapter_is_a_promoted_model_or_a_snapshot_of_the_job(trainer: Trainer) -> None:
    saved = save(trainer.run, "lora-1", kind="sampler")
    account = trainer.program.account
    PromotedModel.objects.create(
        project=trainer.program.actor.project, model_id="mine", checkpoint=saved
    )
    for path in (f"accounts/{account}/models/mine", "lora-1"):
        trainer.ask("load_adapter", adapter_path=path)
        payload = read_payload(trainer)
        assert (payload["checkpoint"], payload["is_adapter"]) == (saved.pk, True)
        assert payload["answer"] == {"adapter_path": path}


@pytest.mark.parametrize("path", ["accounts/x/models/mine", "gs://bucket/a", "none", ""])
def test_an_adapter_that_is_not_there_is_not_found(trainer: Trainer, path: str) -> None:
    trainer.ask("load_adapter", adapter_path=path)
    assert trainer.status == 404


def test_all_weights_take_no_adapter(program: Program, base_model: BaseModel) -> None:
    trainer = open_trainer(program, base_model, "j1", rank=0)
    answer = trainer.ask("load_adapter", adapter_path="a")
    assert (trainer.status, "no adapter" in answer["message"]) == (400, True)
