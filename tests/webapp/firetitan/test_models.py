"""Checkpoints of jobs, what is promoted of them, and the models that programs ask for."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.utils.timezone import now

from tests.webapp.cast import make_base_model, make_run
from tests.webapp.deployments.conftest import make_checkpoint
from tests.webapp.firetitan.conftest import Program
from webapp.checkpoints.models import Checkpoint
from webapp.checkpoints.services import delete_checkpoint, expire_checkpoints
from webapp.firetitan.models import TrainerJob
from webapp.fleet.models import BaseModel
from webapp.runs.models import Origin, Run, Session

TRAINING = Checkpoint.Kind.TRAINING
SAVED = "rlorTrainerJobs/j1/checkpoints"
BASE = "accounts/fireworks/models/tiny-chatml-1m"


@pytest.fixture
def run(program: Program, base_model: BaseModel) -> Run:
    run = make_run(program.actor, base_model)
    run.origin = Origin.FIRETITAN
    run.save()
    return run


@pytest.fixture
def job(program: Program, base_model: BaseModel, run: Run) -> TrainerJob:
    job = TrainerJob.objects.create(
        project=program.actor.project,
        job_id="j1",
        base_model=base_model,
        asked_model=BASE,
        inactivity_seconds=3600,
    )
    job.sessions.set(Session.objects.filter(runs=run))
    return job


def promote(program: Program, name: str, model_id: str = "my-model", **fields: Any) -> Any:
    body = {
        "output_model": f"accounts/{program.account}/models/{model_id}",
        "trainer_job_id": f"accounts/{program.account}/rlorTrainerJobs/j1",
        "base_model": BASE,
        "async_promotion": True,
        **fields,
    }
    return program.post(f"checkpoints/{name}:promote", body)


def test_the_list_says_of_each_what_it_is_and_whether_it_can_be_promoted(
    program: Program, job: TrainerJob, run: Run
) -> None:
    rows: list[dict[str, Any]] = [
        {"name": "dcp-1", "kind": TRAINING},
        {"name": "lora-1"},
        {"name": "merged-1", "user_metadata": {"checkpoint_type": "merged_base"}},
        {"name": "dcp-2", "kind": TRAINING, "rank": 0},
        {"name": "whole-1", "rank": 0, "user_metadata": {"checkpoint_type": "base"}},
        {"name": "whole-2", "rank": 0, "user_metadata": {"checkpoint_type": "delta"}},
        {"name": "passing", "is_ephemeral": True},
        {"name": "gone", "deleted_at": now()},
    ]
    for seq, row in enumerate(rows):
        make_checkpoint(run, seq=seq, **row)
    make_checkpoint(make_run(program.actor, run.base_model), name="of another job")
    told = program.read(f"{SAVED}?pageSize=200")
    assert told["nextPageToken"] == ""
    assert [
        (each["name"].rpartition("/")[2], each["checkpointType"], each["promotable"])
        for each in told["checkpoints"]
    ] == [
        ("dcp-1", "CHECKPOINT_TYPE_TRAINING_LORA", False),
        ("lora-1", "CHECKPOINT_TYPE_INFERENCE_LORA", True),
        ("merged-1", "CHECKPOINT_TYPE_INFERENCE_BASE", True),
        ("dcp-2", "CHECKPOINT_TYPE_TRAINING", False),
        ("whole-1", "CHECKPOINT_TYPE_INFERENCE_BASE", True),
        ("whole-2", "CHECKPOINT_TYPE_INFERENCE_ARC_V2", False),
    ]
    assert told["checkpoints"][0]["name"].startswith(f"accounts/{program.account}/{SAVED}/")


def test_the_list_goes_by_pages_and_outlives_its_job(
    program: Program, job: TrainerJob, run: Run
) -> None:
    for seq in range(3):
        make_checkpoint(run, name=f"s{seq}", seq=seq)
    program.delete("rlorTrainerJobs/j1")
    first = program.read(f"{SAVED}?pageSize=2")
    rest = program.read(f"{SAVED}?pageSize=2&pageToken={first['nextPageToken']}")
    names = [each["name"] for page in (first, rest) for each in page["checkpoints"]]
    assert [name.rpartition("/")[2] for name in names] == ["s0", "s1", "s2"]


def test_a_promoted_adapter_is_kept_and_found_again_as_a_model(
    program: Program, job: TrainerJob, run: Run, settings: Any, tmp_path: Any
) -> None:
    settings.HONE_HOME = tmp_path
    folder = tmp_path / "checkpoints/lora"
    folder.mkdir(parents=True)
    config = json.dumps({"target_modules": ["v_proj", "q_proj"]})
    (folder / "adapter_config.json").write_text(config)
    saved = make_checkpoint(
        run, name="lora-1", path="checkpoints/lora", expires_at=now() - timedelta(hours=1)
    )
    model = promote(program, "lora-1")["model"]
    assert (model["state"], model["kind"]) == ("READY", "HF_PEFT_ADDON")
    assert model["peftDetails"] == {
        "baseModel": "tiny-chatml-1m",
        "r": 8,
        "targetModules": ["q_proj", "v_proj"],
    }
    saved.refresh_from_db()
    assert saved.expires_at is None
    assert expire_checkpoints() == 0
    assert program.read("models/my-model") == model
    assert promote(program, "lora-1")["model"] == model


def test_all_weights_are_promoted_to_a_base_model(
    program: Program, job: TrainerJob, run: Run
) -> None:
    make_checkpoint(run, name="whole", rank=0)
    assert promote(program, "whole")["model"]["kind"] == "HF_BASE_MODEL"


def test_a_name_is_one_models_until_its_checkpoint_is_deleted(
    program: Program, job: TrainerJob, run: Run
) -> None:
    first = make_checkpoint(run, name="first", seq=1)
    make_checkpoint(run, name="second", seq=2)
    promote(program, "first")
    answer = promote(program, "second")
    assert (program.status, answer["code"]) == (409, 6)
    delete_checkpoint(actor=program.actor, checkpoint=first)
    program.read("models/my-model")
    assert program.status == 404
    promote(program, "second")
    assert program.status == 200


@pytest.mark.parametrize(
    ("name", "fields", "status", "told"),
    [
        ("none", {}, 404, "no checkpoint none"),
        ("dcp-1", {}, 400, "TRAINING_LORA"),
        ("lora-1", {"base_model": "other-1"}, 400, "belongs to tiny-chatml-1m"),
        ("lora-1", {"base_model": "unknown"}, 404, "offers no base model"),
        ("lora-1", {"output_model": "accounts/fireworks/models/x"}, 400, "it lies in"),
        ("lora-1", {"output_model": "Big Letters"}, 400, "small letters"),
        ("lora-1", {"output_model": None}, 400, "output_model is required"),
        ("lora-1", {"trainer_job_id": "j2"}, 404, "no trainer job j2"),
    ],
)
def test_what_cannot_be_promoted_is_refused_with_its_reason(
    program: Program,
    job: TrainerJob,
    run: Run,
    name: str,
    fields: dict[str, Any],
    status: int,
    told: str,
) -> None:
    make_base_model("other-1")
    make_checkpoint(run, name="lora-1", seq=1)
    make_checkpoint(run, name="dcp-1", seq=2, kind=TRAINING)
    answer = promote(program, name, **fields)
    assert program.status == status
    assert told in answer["message"]


def test_nobody_else_reads_promotes_or_finds_what_is_saved(
    program: Program, stranger: Program, job: TrainerJob, run: Run
) -> None:
    make_checkpoint(run, name="lora-1")
    promote(program, "lora-1")
    whole = f"/v1/accounts/{program.account}"
    stranger.read(f"{whole}/{SAVED}")
    assert stranger.status == 404
    stranger.post(f"{whole}/checkpoints/lora-1:promote", {"trainer_job_id": "j1"})
    assert stranger.status == 404
    stranger.read(f"{whole}/models/my-model")
    assert stranger.status == 404
    stranger.read("models/my-model")
    assert stranger.status == 404


@pytest.mark.parametrize("experts", [None, 4])
def test_a_base_model_says_whether_it_has_experts(
    program: Program, base_model: BaseModel, tmp_path: Any, experts: int | None
) -> None:
    config = {
        "model_type": "qwen3_moe", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
        "vocab_size": 1000, "max_position_embeddings": 256, "moe_intermediate_size": 32,
        "num_experts_per_tok": 2,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_experts": experts}))
    BaseModel.objects.update(path=str(tmp_path))
    told = program.read(f"/v1/{BASE}")
    assert told["baseModelDetails"]["moe"] is (experts is not None)
    assert (told["kind"], told["contextLength"]) == ("HF_BASE_MODEL", 256)
    program.read("/v1/accounts/fireworks/models/unknown")
    assert program.status == 404
