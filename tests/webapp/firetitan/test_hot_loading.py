"""Hot loads as a program sees them: asked for, loading, served, failed, asked for again."""

from typing import Any

import pytest

from tests.webapp.cast import make_base_model, make_run
from tests.webapp.deployments.conftest import make_checkpoint
from tests.webapp.firetitan.conftest import Program
from webapp.checkpoints.models import Checkpoint
from webapp.deployments.models import Deployment, DeploymentChange
from webapp.deployments.services import change_checkpoint, settle_change, stop_deployment
from webapp.firetitan.models import TrainerJob
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run

PATH = "/hot_load/v1/models/hot_load"
BASE = "accounts/fireworks/models/tiny-chatml-1m"


@pytest.fixture
def deployment(program: Program, base_model: BaseModel) -> Deployment:
    """Serving its base model."""
    program.post("deployments?deploymentId=serving", {"baseModel": BASE})
    settle_change(DeploymentChange.objects.get())
    return Deployment.objects.get()


@pytest.fixture
def run(program: Program, base_model: BaseModel) -> Run:
    return open_job(program, base_model, "j1")


def open_job(program: Program, base_model: BaseModel, job_id: str, **columns: Any) -> Run:
    run = make_run(program.actor, base_model)
    job = TrainerJob.objects.create(
        project=program.actor.project,
        job_id=job_id,
        base_model=base_model,
        asked_model=BASE,
        inactivity_seconds=3600,
        **columns,
    )
    assert run.session is not None
    job.sessions.add(run.session)
    return run


def name_deployment(program: Program) -> dict[str, str]:
    name = f"accounts/{program.account}/deployments/serving"
    return {"fireworks-model": BASE, "fireworks-deployment": name}


def load(program: Program, identity: Any, **fields: Any) -> Any:
    body = {"identity": identity, "reset_prompt_cache": True, **fields}
    return program.post(PATH, body, **name_deployment(program))


def read_replica(program: Program) -> Any:
    (replica,) = program.read(PATH, **name_deployment(program))["replicas"]
    return replica


def find_pending() -> DeploymentChange:
    return DeploymentChange.objects.get(status="loading")


def test_before_any_load_the_base_model_is_ready_and_nothing_is_loaded(
    program: Program, deployment: Deployment
) -> None:
    assert read_replica(program) == {
        "readiness": True,
        "current_snapshot_identity": None,
        "loading_state": {"stage": "done", "target_snapshot_identity": None, "error": ""},
        "loaded_adapters": [],
    }


def test_a_new_deployment_answers_and_is_not_ready(program: Program, base_model: BaseModel) -> None:
    program.post("deployments?deploymentId=serving", {"baseModel": BASE})
    assert read_replica(program)["readiness"] is False


def test_a_load_is_told_by_exactly_the_name_that_was_posted(
    program: Program, deployment: Deployment, run: Run
) -> None:
    saved = make_checkpoint(run, name="step-1-3296a737")
    identity = f"{program.account}/run-1/step-1-3296a737"
    assert load(program, identity) == {"identity": identity, "status": "accepted"}
    loading = read_replica(program)
    assert loading["readiness"] is False
    assert loading["current_snapshot_identity"] is None
    assert loading["loading_state"]["stage"] == "loading"
    assert loading["loading_state"]["target_snapshot_identity"] == identity
    settle_change(find_pending())
    loaded = read_replica(program)
    assert loaded["readiness"] is True
    assert loaded["current_snapshot_identity"] == identity
    assert loaded["loading_state"]["stage"] == "done"
    deployment.refresh_from_db()
    assert deployment.checkpoint == saved


def test_a_failed_load_says_why_and_the_old_weights_stay(
    program: Program, deployment: Deployment, run: Run
) -> None:
    first = make_checkpoint(run, name="first", seq=1)
    make_checkpoint(run, name="second", seq=2)
    load(program, "first")
    settle_change(find_pending())
    load(program, "second")
    settle_change(find_pending(), error="The files are torn.")
    failed = read_replica(program)
    assert failed["readiness"] is True
    assert failed["current_snapshot_identity"] == "first"
    assert failed["loading_state"] == {
        "stage": "error",
        "target_snapshot_identity": "second",
        "error": "The files are torn.",
    }
    deployment.refresh_from_db()
    assert deployment.checkpoint == first
    load(program, "second")  # once more: what failed may be tried again
    assert read_replica(program)["loading_state"]["stage"] == "loading"


def test_the_same_again_changes_nothing(program: Program, deployment: Deployment, run: Run) -> None:
    make_checkpoint(run, name="first")
    for _ in range(2):
        load(program, "first")
    settle_change(find_pending())
    load(program, "first")
    assert DeploymentChange.objects.count() == 2
    assert read_replica(program)["loading_state"]["stage"] == "done"


def test_a_newer_load_comes_before_one_that_waits(
    program: Program, deployment: Deployment, run: Run
) -> None:
    make_checkpoint(run, name="first", seq=1)
    make_checkpoint(run, name="second", seq=2)
    load(program, "first")
    load(program, "second", incremental_snapshot_metadata={"previous_snapshot_identity": "none"})
    assert find_pending().identity == "second"


@pytest.mark.parametrize("wanted", ["ASYNC", "SYNC"])
def test_how_requests_in_flight_go_on_is_the_deployments_word(
    program: Program, deployment: Deployment, run: Run, wanted: str
) -> None:
    program.send("PATCH", "deployments/serving", {"hotLoadTransitionType": wanted})
    make_checkpoint(run, name="first")
    load(program, "first")
    assert find_pending().transition == wanted.lower()


def test_a_stopped_deployment_starts_with_the_snapshot(
    program: Program, deployment: Deployment, run: Run
) -> None:
    make_checkpoint(run, name="first")
    load(program, "first")
    settle_change(find_pending())
    stop_deployment(actor=program.actor, deployment=deployment)
    assert read_replica(program)["readiness"] is False
    load(program, "first")
    assert find_pending().identity == "first"


def test_what_a_person_chose_meanwhile_is_told_by_its_name(
    program: Program, deployment: Deployment, run: Run
) -> None:
    saved = make_checkpoint(run, name="by-hand")
    change_checkpoint(actor=program.actor, deployment=deployment, checkpoint=saved)
    settle_change(find_pending())
    assert read_replica(program)["current_snapshot_identity"] == "by-hand"


def test_of_one_name_the_deployments_own_trainer_comes_first(
    program: Program, deployment: Deployment, base_model: BaseModel, run: Run
) -> None:
    linked = open_job(program, base_model, "j2", hot_load_deployment="serving")
    other = open_job(program, base_model, "j3")
    saved = [make_checkpoint(each, name="same") for each in (run, linked, other)]
    load(program, "same")
    assert find_pending().checkpoint == saved[1]
    program.send("PATCH", "deployments/serving", {"hotLoadTrainerJob": "j1"})
    load(program, "same")
    assert find_pending().checkpoint == saved[0]


@pytest.mark.parametrize(
    ("identity", "columns"),
    [
        ("none", {}),
        ("", {}),
        ("saved", {"kind": Checkpoint.Kind.TRAINING}),
        ("saved", {"deleted_at": "2026-01-01T00:00:00Z"}),
    ],
)
def test_what_is_no_snapshot_is_not_found(
    program: Program, deployment: Deployment, run: Run, identity: str, columns: dict[str, Any]
) -> None:
    make_checkpoint(run, name="saved", **columns)
    answer = load(program, identity)
    assert (program.status, answer["code"]) == (404, 5)
    assert "no snapshot" in answer["message"]


def test_a_snapshot_of_another_base_model_is_not_found(
    program: Program, deployment: Deployment
) -> None:
    run = open_job(program, make_base_model("other-1"), "j4")
    make_checkpoint(run, name="saved")
    load(program, "saved")
    assert program.status == 404


@pytest.mark.parametrize(
    "body",
    [b"{", [], {}, {"identity": 3}, {"identity": "x", "reset_prompt_cache": "no"},
     {"identity": "x", "incremental_snapshot_metadata": "none"}, {"identity": "x" * 201}],
)  # fmt: skip
def test_a_wrong_body_is_refused(program: Program, deployment: Deployment, body: Any) -> None:
    program.post(PATH, body, **name_deployment(program))
    assert program.status == 400


@pytest.mark.parametrize(("name", "status"), [("", 400), ("serving", 400), ("a/b/c/d", 400)])
def test_the_deployment_stands_in_the_header(
    program: Program, deployment: Deployment, name: str, status: int
) -> None:
    program.read(PATH, **{"fireworks-deployment": name})
    assert program.status == status
    unknown = f"accounts/{program.account}/deployments/none"
    program.read(PATH, **{"fireworks-deployment": unknown})
    assert program.status == 404


def test_nobody_else_loads_into_it_or_sees_what_it_serves(
    program: Program, stranger: Program, deployment: Deployment, run: Run
) -> None:
    make_checkpoint(run, name="saved")
    stranger.read(PATH, **name_deployment(program))
    assert stranger.status == 404
    stranger.post(PATH, {"identity": "saved"}, **name_deployment(program))
    assert stranger.status == 404
    stranger.post("deployments?deploymentId=mine", {"baseModel": BASE})
    own = f"accounts/{stranger.account}/deployments/mine"
    stranger.post(PATH, {"identity": "saved"}, **{"fireworks-deployment": own})
    assert stranger.status == 404
