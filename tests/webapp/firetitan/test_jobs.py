"""Trainer jobs as their programs see them: made, told, resumed, cancelled, deleted, idle."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils.timezone import now

from tests.webapp.cast import make_base_model, make_viewer
from tests.webapp.firetitan.conftest import Program
from webapp.deployments.models import Deployment
from webapp.firetitan.models import TrainerJob
from webapp.firetitan.services import delete_job, pause_idle_jobs
from webapp.fleet.models import BaseModel, Worker
from webapp.fleet.services import remove_base_model
from webapp.runs.models import Session

JOBS = "rlorTrainerJobs"
MANUAL = f"{JOBS}?skipValidations=true&rlorTrainerJobId="
# What a gpu worker tells of its memory, as one of a small machine would.
MEMORY = {"device": "cpu", "room": 10**9, "token_budget": 4096}


def make_body(**training: Any) -> dict[str, Any]:
    config = {"baseModel": "accounts/fireworks/models/tiny-chatml-1m", "loraRank": 0}
    return {
        "serviceMode": True,
        "keepAlive": False,
        "dataset": "",
        "trainingConfig": {**config, "learningRate": 1e-5, **training},
        "useReservation": True,
        "nodeCount": 1,
        "displayName": "sft-quickstart",
    }


def make_worker(**holds: Any) -> Worker:
    return Worker.objects.create(name="gpu0", kind=Worker.Kind.GPU, holds=holds)


@pytest.fixture
def worker(db: None) -> Worker:
    return make_worker()


@pytest.fixture
def job(program: Program, base_model: BaseModel, worker: Worker) -> TrainerJob:
    program.post(f"{MANUAL}j1", make_body())
    return TrainerJob.objects.get(job_id="j1")


def test_a_job_is_running_as_soon_as_somebody_can_train(
    program: Program, base_model: BaseModel, worker: Worker
) -> None:
    made = program.post(f"{MANUAL}j1", make_body(maxContextLength=128))
    assert (program.status, made["state"]) == (200, "JOB_STATE_RUNNING")
    assert made["name"] == f"accounts/{program.account}/rlorTrainerJobs/j1"
    assert made["status"] == {"code": "OK", "message": "", "details": []}
    assert made["trainingConfig"]["maxContextLength"] == 128
    assert made["trainingConfig"]["baseModel"] == "accounts/fireworks/models/tiny-chatml-1m"
    assert program.read(f"{JOBS}/j1") == made


def test_it_is_pending_with_a_reason_while_nobody_can(
    program: Program, base_model: BaseModel
) -> None:
    made = program.post(f"{MANUAL}j1", make_body())
    assert made["state"] == "JOB_STATE_PENDING"
    assert "none is alive" in made["status"]["message"]
    worker = make_worker()
    assert program.read(f"{JOBS}/j1")["state"] == "JOB_STATE_RUNNING"
    Worker.objects.filter(pk=worker.pk).update(heartbeat_at=now() - timedelta(hours=1))
    assert program.read(f"{JOBS}/j1")["state"] == "JOB_STATE_PENDING"


def test_an_unknown_base_model_fails_the_job_with_what_there_is(
    program: Program, base_model: BaseModel
) -> None:
    made = program.post(f"{MANUAL}j1", make_body(baseModel="accounts/fireworks/models/qwen3-8b"))
    assert (program.status, made["state"]) == (200, "JOB_STATE_FAILED")
    assert "qwen3-8b" in made["status"]["message"]
    assert "tiny-chatml-1m" in made["status"]["message"]


def test_a_failed_job_is_resumed_once_its_base_model_is_there(
    program: Program, base_model: BaseModel, worker: Worker
) -> None:
    program.post(f"{MANUAL}j1", make_body(baseModel="accounts/fireworks/models/qwen3-8b"))
    assert program.post(f"{JOBS}/j1:resume")["state"] == "JOB_STATE_FAILED"
    make_base_model("Qwen/Qwen3-8B")
    assert program.post(f"{JOBS}/j1:resume")["state"] == "JOB_STATE_RUNNING"


def test_a_model_that_fits_no_worker_fails_the_job(program: Program, tmp_path: Any) -> None:
    make_worker(memory={**MEMORY, "room": 1000})
    big = make_base_model("big-1")
    (tmp_path / "config.json").write_text(CONFIG)
    BaseModel.objects.filter(pk=big.pk).update(path=str(tmp_path))
    made = program.post(f"{MANUAL}j1", make_body(baseModel="big-1"))
    assert made["state"] == "JOB_STATE_FAILED"
    assert "memory" in made["status"]["message"] or "room" in made["status"]["message"]


def test_one_that_has_trained_waits_for_a_worker_that_is_large_enough(
    program: Program, job: TrainerJob, tmp_path: Any
) -> None:
    session = Session.objects.create(project=program.actor.project, user=program.actor.user)
    job.sessions.add(session)
    (tmp_path / "config.json").write_text(CONFIG)
    BaseModel.objects.update(path=str(tmp_path))
    Worker.objects.update(holds={"memory": {**MEMORY, "room": 1000}})
    told = program.read(f"{JOBS}/j1")
    assert told["state"] == "JOB_STATE_PENDING"
    assert told["status"]["message"]
    Worker.objects.update(holds={"memory": {**MEMORY, "room": 10**12}})
    assert program.read(f"{JOBS}/j1")["state"] == "JOB_STATE_RUNNING"


def test_a_base_model_that_is_not_offered_any_more_fails_the_jobs_that_wait_for_it(
    program: Program, job: TrainerJob
) -> None:
    remove_base_model(name="tiny-chatml-1m")
    assert program.read(f"{JOBS}/j1")["state"] == "JOB_STATE_FAILED"


CONFIG = """{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
"intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
"num_key_value_heads": 4, "vocab_size": 1000, "max_position_embeddings": 256,
"tie_word_embeddings": false}"""


def test_the_shape_path_and_the_automatic_path_make_jobs_too(
    program: Program, base_model: BaseModel, worker: Worker
) -> None:
    shape = "accounts%2Ffireworks%2FtrainingShapes%2Ftiny"
    made = program.post(f"{JOBS}?trainingShape={shape}&rlorTrainerJobId=j1", make_body())
    assert made["trainingShape"] == "accounts/fireworks/trainingShapes/tiny"
    assert made["trainingConfig"]["maxContextLength"] == 256
    assert program.post(f"{JOBS}?rlorTrainerJobId=j2", make_body())["state"].endswith("RUNNING")


def test_what_is_not_followed_is_told_as_a_warning(
    program: Program, base_model: BaseModel, worker: Worker
) -> None:
    body = make_body(maxContextLength=4096, acceleratorType="NVIDIA_H200_141GB")
    body |= {"preemptible": True, "nodeCount": 4, "inactivityTimeout": "90000s"}
    message = program.post(f"{MANUAL}j1", body)["status"]["message"]
    assert message.startswith("Warning: ")
    for told in ("4096", "256", "acceleratorType", "preemptible", "nodeCount", "10800s"):
        assert told in message


def test_a_job_that_links_a_deployment_tells_it(
    program: Program, base_model: BaseModel, worker: Worker
) -> None:
    body = make_body() | {"hotLoadDeploymentId": "serving", "forwardOnly": True}
    made = program.post(f"{MANUAL}j1", body)
    assert made["hotLoadDeploymentId"] == f"accounts/{program.account}/deployments/serving"
    assert made["forwardOnly"] is True


def test_the_same_id_again_is_a_conflict_whatever_became_of_the_first(
    program: Program, job: TrainerJob
) -> None:
    for _ in range(2):
        answer = program.post(f"{MANUAL}j1", make_body())
        assert (program.status, answer["code"]) == (409, 6)
        program.delete(f"{JOBS}/j1")
    assert program.read(f"{JOBS}/j1")["state"] == "JOB_STATE_DELETED"


def test_two_accounts_may_have_jobs_of_one_id(
    program: Program, stranger: Program, job: TrainerJob
) -> None:
    stranger.post(f"{MANUAL}j1", make_body())
    assert stranger.status == 200


@pytest.mark.parametrize(
    ("query", "body", "told"),
    [
        ("", make_body(), "rlorTrainerJobId"),
        ("?rlorTrainerJobId=Big_Letters", make_body(), "small letters"),
        ("?rlorTrainerJobId=j1", b"{", "not JSON"),
        ("?rlorTrainerJobId=j1", b"[]", "not a JSON object"),
        ("?rlorTrainerJobId=j1", {}, "trainingConfig.baseModel is required"),
        ("?rlorTrainerJobId=j1", {"trainingConfig": 3}, "send an object"),
        ("?rlorTrainerJobId=j1", make_body(loraRank=-1), "loraRank"),
        ("?rlorTrainerJobId=j1", make_body(loraRank=True), "loraRank"),
        ("?rlorTrainerJobId=j1", make_body(maxContextLength=10**30), "maxContextLength"),
        ("?rlorTrainerJobId=j1", make_body() | {"inactivityTimeout": "soon"}, "1800s"),
        ("?rlorTrainerJobId=j1", make_body() | {"serviceMode": False}, "service-mode"),
        ("?rlorTrainerJobId=j1", make_body() | {"nodeCount": "x"}, "nodeCount"),
        ("?rlorTrainerJobId=j1&deploymentId=a/B", make_body(), "deploymentId"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(
    program: Program, base_model: BaseModel, query: str, body: Any, told: str
) -> None:
    answer = program.post(f"{JOBS}{query}", body)
    assert (program.status, answer["code"]) == (400, 3)
    assert told in answer["message"]
    assert not TrainerJob.objects.exists()


def test_nobody_else_sees_a_job(program: Program, stranger: Program, job: TrainerJob) -> None:
    whole = f"/v1/accounts/{program.account}/{JOBS}"
    for method, path in (
        ("GET", whole),
        ("POST", f"{whole}?rlorTrainerJobId=j2"),
        ("GET", f"{whole}/j1"),
        ("DELETE", f"{whole}/j1"),
        ("POST", f"{whole}/j1:resume"),
        ("POST", f"{whole}/j1:cancel"),
    ):
        stranger.send(method, path, make_body() if method == "POST" else None)
        assert stranger.status == 404
    stranger.read(f"{JOBS}/j1")
    assert stranger.status == 404
    assert stranger.read(JOBS)["rlorTrainerJobs"] == []


def test_a_viewer_reads_jobs_and_makes_none(program: Program, job: TrainerJob) -> None:
    viewer = Program(make_viewer(program.actor))
    assert viewer.read(f"{JOBS}/j1")["displayName"] == "sft-quickstart"
    answer = viewer.delete(f"{JOBS}/j1")
    assert (viewer.status, answer["code"]) == (403, 7)


def test_a_deleted_job_answers_nothing_its_row_stays_and_its_sessions_end(
    program: Program, job: TrainerJob
) -> None:
    session = Session.objects.create(project=program.actor.project, user=program.actor.user)
    TrainerJob.objects.get().sessions.add(session)
    for _ in range(2):
        assert program.delete(f"{JOBS}/j1") == {}
    session.refresh_from_db()
    assert session.finish_reason == "success"
    program.post(f"{JOBS}/j1:resume")
    assert program.status == 400
    program.delete(f"{JOBS}/none")
    assert program.status == 404


def test_a_cancelled_job_is_resumed_but_not_cancelled_again(
    program: Program, job: TrainerJob
) -> None:
    assert program.post(f"{JOBS}/j1:cancel") == {}
    assert program.read(f"{JOBS}/j1")["state"] == "JOB_STATE_CANCELLED"
    program.post(f"{JOBS}/j1:cancel")
    assert program.status == 400
    assert program.post(f"{JOBS}/j1:resume")["state"] == "JOB_STATE_RUNNING"
    assert program.post(f"{JOBS}/j1:resume")["state"] == "JOB_STATE_RUNNING"


def test_a_job_that_began_to_run_a_moment_ago_is_deleted_all_the_same(
    program: Program, job: TrainerJob
) -> None:
    seen = TrainerJob.objects.get()
    seen.state = TrainerJob.State.PENDING
    delete_job(actor=program.actor, job=seen)
    assert program.read(f"{JOBS}/j1")["state"] == "JOB_STATE_DELETED"


def test_its_steps_are_its_programs_own(program: Program, job: TrainerJob) -> None:
    assert "training client" in program.post(f"{JOBS}/j1:executeTrainStep")["message"]
    assert program.status == 400


def test_a_list_goes_by_pages_oldest_first(
    program: Program, base_model: BaseModel, worker: Worker
) -> None:
    for number in range(5):
        program.post(f"{MANUAL}j{number}", make_body())
    seen, token = [], ""
    while True:
        page = program.read(f"{JOBS}?pageSize=2&pageToken={token}")
        seen += [each["name"].rpartition("/")[2] for each in page["rlorTrainerJobs"]]
        token = page["nextPageToken"]
        if not token:
            break
    assert seen == [f"j{number}" for number in range(5)]


@pytest.mark.parametrize("query", ["pageSize=-1", "pageSize=x", "pageToken=damaged"])
def test_a_wrong_page_is_refused(program: Program, query: str) -> None:
    program.read(f"{JOBS}?{query}")
    assert program.status == 400


def test_a_job_whose_program_is_silent_is_paused_and_its_sessions_end(
    program: Program, job: TrainerJob
) -> None:
    session = Session.objects.create(project=program.actor.project, user=program.actor.user)
    long_ago = now() - timedelta(hours=2)
    job.sessions.add(session)
    TrainerJob.objects.update(last_seen_at=long_ago)
    assert pause_idle_jobs() == 0  # its session has beaten
    Session.objects.update(heartbeat_at=long_ago)
    assert pause_idle_jobs() == 1
    session.refresh_from_db()
    assert session.finish_reason == "lost"
    paused = program.read(f"{JOBS}/j1")
    assert paused["state"] == "JOB_STATE_PAUSED"
    assert "3600 s" in paused["status"]["message"]
    assert program.post(f"{JOBS}/j1:resume")["state"] == "JOB_STATE_RUNNING"
    assert pause_idle_jobs() == 0


def test_the_deployments_that_it_made_for_its_training_sleep_with_it(
    program: Program, job: TrainerJob
) -> None:
    body = {"baseModel": "tiny-chatml-1m", "minReplicaCount": 1, "forTraining": True}
    name = f"accounts/{program.account}/{JOBS}/j1"
    program.post("deployments?deploymentId=own", {**body, "hotLoadTrainerJob": name})
    kept = {**body, "forTraining": False}
    program.post("deployments?deploymentId=kept", {**kept, "hotLoadTrainerJob": name})
    program.post("deployments?deploymentId=other", body)
    TrainerJob.objects.update(last_seen_at=now() - timedelta(hours=2))
    assert pause_idle_jobs() == 1
    scales = dict(Deployment.objects.values_list("name", "num_replicas"))
    assert scales == {"own": 0, "kept": 1, "other": 1}


def test_a_shape_has_one_version_named_after_whoever_asks(
    program: Program, base_model: BaseModel
) -> None:
    make_base_model("Qwen/Qwen3-8B")
    BaseModel.objects.filter(names__name="Qwen/Qwen3-8B").update(context_tokens=4096)
    path = "/v1/accounts/fireworks/trainingShapes/tiny-chatml-1m-h200/versions"
    (version,) = program.read(f"{path}?filter=latest_validated%3Dtrue&pageSize=1")[
        "trainingShapeVersions"
    ]
    assert version["snapshot"]["maxSupportedContextLength"] == 256
    assert version["snapshot"]["trainerMode"] == "LORA_TRAINER"
    assert version["snapshot"]["deploymentShapeVersion"]
    assert program.read(f"/v1/{version['name']}") == version
    other = program.read(f"{path.replace('tiny-chatml-1m', 'big')}/local")
    assert other["snapshot"]["maxSupportedContextLength"] == 4096
    program.read(f"{path}/v2")
    assert program.status == 404
