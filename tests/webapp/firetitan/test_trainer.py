"""The trainer's wire: sessions and models of a job, and what of a job's life it meets."""

import json
from typing import Any

import pytest

from tests.webapp.cast import make_base_model, make_viewer
from tests.webapp.firetitan.conftest import Program
from tests.webapp.firetitan.test_jobs import make_worker
from tests.webapp.firetitan.trainers import Trainer, make_job
from webapp.firetitan.models import TrainerJob
from webapp.firetitan.services import pause_idle_jobs
from webapp.fleet.models import BaseModel
from webapp.runs.models import Operation, Origin, Run, Session

Kind = Operation.Kind
State = TrainerJob.State


@pytest.fixture
def trainer(program: Program, base_model: BaseModel) -> Trainer:
    made = Trainer(program=program, job=make_job(program, base_model))
    made.open_session()
    return made


def read_payload(operation: Operation) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(bytes(operation.payload or b""))
    return payload


def test_a_trainer_is_healthy_when_its_job_runs(program: Program, base_model: BaseModel) -> None:
    trainer = Trainer(program=program, job=make_job(program, base_model, state=State.PENDING))
    answer = trainer.read("healthz")
    assert (trainer.status, "none is alive" in answer["message"]) == (409, True)
    make_worker()
    assert trainer.read("healthz") == {"status": "ok"}
    TrainerJob.objects.update(state=State.PAUSED, error="Nothing was heard.")
    assert trainer.read("healthz")["message"] == "Nothing was heard."


def test_a_session_belongs_to_its_job_and_carries_its_name(trainer: Trainer) -> None:
    session = Session.objects.get()
    assert list(trainer.job.sessions.all()) == [session]
    assert (session.pk, session.display_name) == (trainer.session_id, "mine")
    assert not session.pk.startswith("ts-")  # by this the SDK would take us for serverless


def test_a_session_made_again_with_its_key_is_the_same(trainer: Trainer) -> None:
    body = {"tags": [], "type": "create_session"}
    made = [
        trainer.send("POST", "create_session", body, **{"X-Idempotency-Key": "k"}) for _ in range(2)
    ]
    assert made[0] == made[1]


def test_a_model_is_a_run_with_the_shape_that_was_asked_for(trainer: Trainer) -> None:
    lora = {"rank": 16, "alpha": 32, "seed": 5, "train_unembed": False, "init_method": "kaiming"}
    promise = trainer.open_model(lora_config=lora)
    run = Run.objects.get()
    assert promise["model_id"] == run.model_id
    assert (run.origin, run.rank, run.is_reference, run.name) == (
        *(Origin.FIRETITAN, 16, False, "mine"),
    )
    assert (run.lora["alpha"], run.lora["seed"], run.lora["train_unembed"]) == (32.0, 5, False)
    payload = read_payload(run.operations.get())
    assert (payload["rank"], payload["alpha"]) == (16, 32.0)
    assert payload["answer"]["supports_reinforce"] is True
    assert payload["answer"]["supports_router_replay"] is False


def test_without_an_alpha_it_is_twice_the_rank(trainer: Trainer) -> None:
    trainer.open_model(rank=8)
    assert Run.objects.get().lora["alpha"] == 16.0


def test_rank_0_is_all_weights(trainer: Trainer) -> None:
    trainer.open_model(rank=0)
    run = Run.objects.get()
    assert run.is_full
    assert read_payload(run.operations.get())["rank"] == 0
    info = trainer.post("get_info", model_id=trainer.model_id)
    assert (info["is_lora"], info["lora_rank"]) == (False, None)


@pytest.mark.parametrize("rank", [0, 8])
def test_a_projection_head_is_the_models_own(trainer: Trainer, rank: int) -> None:
    trainer.open_model(rank=rank, projection_head_dim=64)
    assert read_payload(Run.objects.get().operations.get())["projection_head_dim"] == 64


@pytest.mark.parametrize("forward_only", [True, False])
def test_a_reference_has_the_weights_of_the_base(
    program: Program, base_model: BaseModel, forward_only: bool
) -> None:
    """Asked for as such, or on a job that is for forward passes alone."""
    trainer = Trainer(program=program, job=make_job(program, base_model, forward_only=forward_only))
    trainer.open_session()
    fields: dict[str, Any] = {} if forward_only else {"lora_config": None, "base_only": True}
    trainer.open_model(rank=0, **fields)
    run = Run.objects.get()
    assert (run.is_reference, run.is_full) == (True, False)
    trainer.score()
    assert (trainer.status, trainer.last.status) == (200, Operation.Status.QUEUED)
    trainer.learn()
    assert trainer.last.status == Operation.Status.FAILED
    assert "reference" in trainer.last.error
    for path in ("optim_step", "save_weights", "save_weights_for_sampler", "load_weights"):
        answer = trainer.ask(path, path="a")
        assert (trainer.status, "reference" in answer["message"]) == (400, True)


def test_a_model_made_again_is_the_same_promise(trainer: Trainer) -> None:
    first = trainer.open_model()
    assert trainer.open_model() == first
    trainer.open_model(rank=16)
    assert trainer.status == 400
    trainer.open_model(base_only=True)
    assert trainer.status == 400
    assert Operation.objects.count() == 1


def test_one_session_has_several_models(trainer: Trainer) -> None:
    first, second = trainer.open_model(0), trainer.open_model(1, base_only=True)
    assert first["model_id"] != second["model_id"]
    assert Run.objects.filter(session__trainer_jobs=trainer.job).count() == 2


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"lora_config": {"rank": -1}}, "lora_config.rank is -1"),
        ({"lora_config": {"rank": 10_000}}, "lora_config.rank is 10000"),
        ({"lora_config": {"rank": 8, "alpha": 0}}, "lora_config.alpha is 0"),
        ({"lora_config": {"rank": 8, "init_method": "nora"}}, "kaiming is offered"),
        ({"projection_head_dim": 10**6}, "projection_head_dim"),
        ({"base_model": "accounts/a/models/none"}, "no base model"),
        ({"model_seq_id": "0"}, "model_seq_id"),
        (
            {"lora_config": {"rank": 8, **dict.fromkeys(("train_mlp", "train_attn"), False)}},
            "",  # the head alone is left to train, and that is a shape
        ),
    ],
)
def test_a_shape_that_cannot_be_is_refused(
    trainer: Trainer, fields: dict[str, Any], complaint: str
) -> None:
    body = {"session_id": trainer.session_id, "model_seq_id": 0, **fields}
    answer = trainer.post("create_model", **{"base_model": trainer.job.asked_model, **body})
    assert trainer.status == (400 if complaint else 200)
    assert complaint in answer.get("message", "")


def test_a_job_trains_the_base_model_that_it_is_for(trainer: Trainer) -> None:
    make_base_model("other-model")
    answer = trainer.open_model(base_model="other-model")
    assert trainer.status == 400
    assert "create another job" in answer["message"]


def test_a_base_model_goes_by_its_name_in_any_account(trainer: Trainer) -> None:
    trainer.open_model(base_model="accounts/fireworks/models/tiny-chatml-1m")
    assert trainer.status == 200


def test_a_session_of_another_job_is_not_there(
    trainer: Trainer, program: Program, base_model: BaseModel
) -> None:
    other = Trainer(program=program, job=make_job(program, base_model, job_id="j2"))
    other.open_session()
    trainer.session_id = other.session_id
    trainer.open_model()
    assert trainer.status == 404


def test_another_project_finds_nothing(trainer: Trainer, stranger: Program) -> None:
    trainer.open_model()
    theirs = Trainer(program=stranger, job=trainer.job, model_id=trainer.model_id)
    theirs.post("get_info", model_id=trainer.model_id)
    assert theirs.status == 404


def test_a_viewer_opens_no_session(trainer: Trainer) -> None:
    viewer = Trainer(program=Program(make_viewer(trainer.program.actor)), job=trainer.job)
    viewer.post("create_session")
    assert viewer.status == 403
    assert viewer.read("list_checkpoints") == {"checkpoints": []}


def test_a_deleted_job_takes_no_more_work_and_its_runs_are_over(trainer: Trainer) -> None:
    trainer.open_model()
    trainer.program.delete("rlorTrainerJobs/j1")
    assert Run.objects.get().is_over
    answer = trainer.learn()
    assert (trainer.status, "has ended" in answer["message"]) == (400, True)
    answer = trainer.post("create_session")
    assert (trainer.status, "deleted" in answer["message"]) == (400, True)
    assert trainer.post("telemetry", events=[]) == {"status": "accepted"}


def test_a_job_of_a_silent_program_ends_its_runs_and_is_opened_anew(trainer: Trainer) -> None:
    make_worker()
    trainer.open_model()
    Operation.objects.update(status=Operation.Status.DONE)
    TrainerJob.objects.update(inactivity_seconds=0)
    assert pause_idle_jobs() == 1
    assert Run.objects.get().is_over
    trainer.program.post("rlorTrainerJobs/j1:resume")
    trainer.open_session()
    trainer.open_model()
    assert (trainer.status, Run.objects.count()) == (200, 2)


def test_telemetry_needs_no_key(trainer: Trainer) -> None:
    trainer.program.secret = ""
    assert trainer.post("telemetry", events=[{}]) == {"status": "accepted"}
    trainer.post("create_session")
    assert trainer.status == 401


def test_the_configuration_is_that_of_json_requests(trainer: Trainer) -> None:
    flags = trainer.post("client/config", sdk_version="0.23.0")
    assert flags["parallel_fwdbwd_chunks"]
    assert not any(flags[name] for name in ("proto_write_fwdbwd", "pjwt_auth_enabled"))


def test_the_capabilities_name_the_jobs_model(trainer: Trainer) -> None:
    (model,) = trainer.read("get_server_capabilities")["supported_models"]
    assert model["model_name"] == trainer.job.asked_model


def test_an_unloaded_model_ends_after_what_was_asked_before(trainer: Trainer) -> None:
    trainer.open_model()
    trainer.learn()
    promise = trainer.post("unload_model", model_id=trainer.model_id)
    assert trainer.post("unload_model", model_id=trainer.model_id) == promise
    operation = Operation.objects.get(kind=Kind.UNLOAD_MODEL)
    assert (operation.request_id, operation.seq) == (promise["request_id"], 2)


def test_an_unknown_path_and_an_unknown_model_are_sentences(trainer: Trainer) -> None:
    for path in ("weight_sync", "asample"):
        answer = trainer.post(path)
        assert (trainer.status, answer["code"]) == (404, 5)
    answer = trainer.post("get_info", model_id="ses-none:train:0")
    assert (trainer.status, answer["code"]) == (404, 5)
