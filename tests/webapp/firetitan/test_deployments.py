"""Deployments as their programs see them: made, told, scaled, changed, deleted, made again."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.webapp.cast import make_base_model, make_run
from tests.webapp.deployments.conftest import make_checkpoint
from tests.webapp.firetitan.conftest import Program
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.deployments.models import Deployment
from webapp.deployments.replicas import scale_deployment
from webapp.deployments.services import create_deployment, stop_deployment
from webapp.firetitan import deployment_services
from webapp.firetitan.models import DeploymentTerms, PromotedModel, TrainerJob
from webapp.firetitan.promotion import find_model
from webapp.fleet.models import BaseModel

PATH = "deployments"
NEW = f"{PATH}?deploymentId="
BASE = "accounts/fireworks/models/tiny-chatml-1m"
SHAPE = "accounts/fireworks/deploymentShapes/ds-local/versions/v1"
Status = Deployment.Status


def make_body(**fields: Any) -> dict[str, Any]:
    return {
        "baseModel": BASE,
        "description": "Fireworks training deployment",
        "minReplicaCount": 1,
        "maxReplicaCount": 1,
        "enableHotLoad": True,
        "forTraining": True,
        "hotLoadBucketType": "FW_HOSTED",
        "deploymentShape": SHAPE,
        **fields,
    }


@pytest.fixture
def job(program: Program, base_model: BaseModel) -> TrainerJob:
    return TrainerJob.objects.create(
        project=program.actor.project,
        job_id="j1",
        base_model=base_model,
        asked_model=BASE,
        inactivity_seconds=3600,
    )


@pytest.fixture
def served(program: Program, base_model: BaseModel) -> Deployment:
    program.post(f"{NEW}serving", make_body())
    Deployment.objects.update(status=Status.READY)
    return Deployment.objects.get(name="serving")


def name_job(program: Program) -> str:
    return f"accounts/{program.account}/rlorTrainerJobs/j1"


def test_one_is_made_on_the_base_model_and_told_as_it_was_said(
    program: Program, job: TrainerJob
) -> None:
    body = make_body(hotLoadTrainerJob=name_job(program), hotLoadTransitionType="SYNC")
    made = program.post(f"{NEW}research-serving&skipShapeValidation=true", body)
    assert (program.status, made["state"]) == (200, "CREATING")
    assert made["name"] == f"accounts/{program.account}/deployments/research-serving"
    for key in (
        *("baseModel", "description", "minReplicaCount", "maxReplicaCount", "enableHotLoad"),
        *("hotLoadTrainerJob", "hotLoadTransitionType", "deploymentShape", "forTraining"),
    ):
        assert made[key] == body[key]
    assert program.read(f"{PATH}/research-serving") == made
    deployment = Deployment.objects.get()
    assert (deployment.checkpoint, deployment.num_replicas) == (None, 1)


def test_what_was_never_said_is_absent(program: Program, base_model: BaseModel) -> None:
    made = program.post(f"{NEW}serving", {"baseModel": "tiny-chatml-1m"})
    assert not {"hotLoadTrainerJob", "hotLoadTransitionType", "deploymentShape"} & set(made)


@pytest.mark.parametrize(
    ("status", "num_replicas", "state"),
    [
        (Status.LOADING, 1, "CREATING"),
        (Status.LOADING, 0, "READY"),
        (Status.READY, 1, "READY"),
        (Status.READY, 0, "READY"),
        (Status.FAILED, 1, "FAILED"),
        (Status.STOPPED, 1, "READY"),
    ],
)
def test_its_state_is_what_it_is(
    program: Program, served: Deployment, status: str, num_replicas: int, state: str
) -> None:
    Deployment.objects.update(status=status, num_replicas=num_replicas, error="It did not fit.")
    told = program.read(f"{PATH}/serving")
    assert told["state"] == state
    assert (told["status"]["message"] == "It did not fit.") is (state == "FAILED")


def test_one_that_has_served_and_loads_again_is_updating(
    program: Program, served: Deployment
) -> None:
    served.changes.create(status="served")
    Deployment.objects.update(status=Status.LOADING)
    assert program.read(f"{PATH}/serving")["state"] == "UPDATING"


def test_a_promoted_model_is_served_from_its_checkpoint(
    program: Program, base_model: BaseModel
) -> None:
    checkpoint = make_checkpoint(make_run(program.actor, base_model))
    PromotedModel.objects.create(
        project=program.actor.project, model_id="my-model", checkpoint=checkpoint
    )
    body = make_body(baseModel=f"accounts/{program.account}/models/my-model")
    program.post(f"{NEW}serving", body)
    assert Deployment.objects.get().checkpoint == checkpoint


def test_the_same_id_again_is_a_conflict(program: Program, served: Deployment) -> None:
    answer = program.post(f"{NEW}serving", make_body())
    assert (program.status, answer["code"]) == (409, 6)


def test_of_two_programs_that_ask_at_once_the_slower_one_is_told_of_the_conflict(
    program: Program, base_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_slowly(actor: Actor, name: str) -> tuple[BaseModel, Checkpoint | None]:
        create_deployment(actor=actor, name="serving", base_model=base_model)
        return find_model(actor, name)

    monkeypatch.setattr(deployment_services, "find_model", find_slowly)
    answer = program.post(f"{NEW}serving", make_body())
    assert (program.status, answer["code"]) == (409, 6)
    assert program.read(f"{PATH}/serving")["state"] == "CREATING"


@pytest.mark.django_db(transaction=True)
def test_of_many_that_ask_at_once_one_makes_it_and_all_others_find_it(
    program: Program, base_model: BaseModel
) -> None:
    statuses = ask_at_once(program, "POST", f"{NEW}serving", [make_body()] * 6)
    assert sorted(statuses) == [200, *[409] * 5]
    assert Deployment.objects.get().changes.count() == 1
    assert DeploymentTerms.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_changes_that_come_at_once_all_stand(program: Program, base_model: BaseModel) -> None:
    create_deployment(actor=program.actor, name="by-hand", base_model=base_model)
    changes = [
        {"description": "ours"},
        {"annotations": {"a": "1"}},
        {"hotLoadTransitionType": "SYNC"},
    ]
    assert ask_at_once(program, "PATCH", f"{PATH}/by-hand", changes) == [200] * 3
    terms = DeploymentTerms.objects.get()
    assert (terms.description, terms.annotations) == ("ours", {"a": "1"})
    assert terms.hot_load_transition_type == "SYNC"


def ask_at_once(program: Program, method: str, path: str, bodies: list[Any]) -> list[int]:
    begin = Barrier(len(bodies), timeout=60)

    def ask(body: Any) -> int:
        mine = Program(program.actor)
        begin.wait()
        try:
            mine.send(method, path, body)
        finally:
            connection.close()
        return mine.status

    with ThreadPoolExecutor(len(bodies)) as threads:
        return list(threads.map(ask, bodies))


def test_a_deleted_one_is_gone_and_its_id_is_free(program: Program, served: Deployment) -> None:
    assert program.delete(f"{PATH}/serving?ignoreChecks=true&hard=true") == {}
    program.read(f"{PATH}/serving")
    assert program.status == 404
    program.delete(f"{PATH}/serving")
    assert program.status == 404
    assert program.post(f"{NEW}serving", make_body())["state"] == "CREATING"


def test_it_is_scaled_to_nothing_and_up(program: Program, served: Deployment) -> None:
    body = {"maxReplicaCount": 0, "minReplicaCount": 0}
    told = program.send("PATCH", f"{PATH}/serving", body)
    assert (told["state"], told["desiredReplicaCount"]) == ("READY", 0)
    assert "sleeps" in told["status"]["message"]
    assert program.send("PATCH", f"{PATH}/serving:scale", {"replicaCount": 2}) == {}
    assert program.read(f"{PATH}/serving")["desiredReplicaCount"] == 2
    assert Deployment.objects.get().num_replicas == 2


def test_another_change_leaves_the_number_that_a_person_chose(
    program: Program, served: Deployment
) -> None:
    scale_deployment(actor=program.actor, deployment=served, num_replicas=3)
    told = program.send("PATCH", f"{PATH}/serving", {"description": "other"})
    assert (told["description"], told["desiredReplicaCount"]) == ("other", 3)


def test_the_list_costs_the_same_however_long_it_is(
    program: Program, base_model: BaseModel
) -> None:
    def count() -> int:
        with CaptureQueriesContext(connection) as captured:
            program.read(PATH)
        return len(captured)

    program.post(f"{NEW}first", make_body())
    Deployment.objects.update(status=Status.READY)
    short = count()
    for number in range(5):
        program.post(f"{NEW}more-{number}", make_body())
    Deployment.objects.update(status=Status.READY)
    assert count() == short


def test_a_mask_changes_what_it_names_and_nothing_else(
    program: Program, served: Deployment, job: TrainerJob
) -> None:
    mask = "updateMask=hot_load_trainer_job,hot_load_transition_type"
    body = {
        "hotLoadTrainerJob": name_job(program),
        "hotLoadTransitionType": "ASYNC",
        "description": "not in the mask",
    }
    told = program.send("PATCH", f"{PATH}/serving?{mask}", body)
    assert told["hotLoadTrainerJob"] == name_job(program)
    assert told["hotLoadTransitionType"] == "ASYNC"
    assert told["description"] == "Fireworks training deployment"
    told = program.send("PATCH", f"{PATH}/serving?updateMask=hotLoadTrainerJob", {})
    assert "hotLoadTrainerJob" not in told


def test_one_that_a_person_made_is_told_and_changed_too(
    program: Program, base_model: BaseModel, job: TrainerJob
) -> None:
    deployment = create_deployment(actor=program.actor, name="By hand", base_model=base_model)
    told = program.read(f"{PATH}/By%20hand")
    assert told["baseModel"] == f"accounts/{program.account}/models/tiny-chatml-1m"
    program.send("PATCH", f"{PATH}/By%20hand", {"hotLoadTrainerJob": name_job(program)})
    assert DeploymentTerms.objects.get().deployment == deployment
    stop_deployment(actor=program.actor, deployment=deployment)
    assert "stopped" in program.read(f"{PATH}/By%20hand")["status"]["message"]
    assert [each["displayName"] for each in program.read(PATH)["deployments"]] == ["By hand"]


@pytest.mark.parametrize(
    ("query", "body", "status", "told"),
    [
        ("", make_body(), 400, "deploymentId"),
        ("?deploymentId=Big", make_body(), 400, "small letters"),
        ("?deploymentId=d", b"not json", 400, "not JSON"),
        ("?deploymentId=d", {}, 400, "baseModel is required"),
        ("?deploymentId=d", make_body(baseModel="qwen3-8b"), 404, "offers no base model"),
        ("?deploymentId=d", make_body(minReplicaCount=2), 400, "no larger"),
        ("?deploymentId=d", make_body(maxReplicaCount="x"), 400, "maxReplicaCount"),
        ("?deploymentId=d", make_body(maxReplicaCount=10**6), 400, "maxReplicaCount"),
        ("?deploymentId=d", make_body(hotLoadTransitionType="FAST"), 400, "ASYNC, SYNC"),
        ("?deploymentId=d", make_body(hotLoadTrainerJob="j2"), 400, "no such trainer job"),
        ("?deploymentId=d", make_body(baseModel="other-1", hotLoadTrainerJob="j1"), 400, "another"),
        ("?deploymentId=d", make_body(annotations=[1]), 400, "annotations"),
    ],
)
def test_what_is_wrong_with_a_new_one_is_said(
    program: Program, job: TrainerJob, query: str, body: Any, status: int, told: str
) -> None:
    make_base_model("other-1")
    answer = program.post(f"{PATH}{query}", body)
    assert program.status == status
    assert told in answer["message"]
    assert not Deployment.objects.exists()


@pytest.mark.parametrize(
    ("query", "body", "told"),
    [
        ("?updateMask=base_model", {}, "what can be changed"),
        ("?updateMask=hot_load_trainer_job", {"hotLoadTrainerJob": "j9"}, "no such trainer job"),
        ("", {"minReplicaCount": 4}, "no larger"),
        (":scale", {}, "replicaCount is required"),
        (":scale", {"replicaCount": -1}, "replicaCount"),
    ],
)
def test_what_is_wrong_with_a_change_is_said(
    program: Program, served: Deployment, query: str, body: Any, told: str
) -> None:
    answer = program.send("PATCH", f"{PATH}/serving{query}", body)
    assert program.status == 400
    assert told in answer["message"]


def test_nobody_else_sees_changes_or_deletes_one(
    program: Program, stranger: Program, served: Deployment, job: TrainerJob
) -> None:
    whole = f"/v1/accounts/{program.account}/{PATH}"
    for method, path in (
        ("GET", whole),
        ("POST", f"{whole}?deploymentId=d"),
        ("GET", f"{whole}/serving"),
        ("PATCH", f"{whole}/serving"),
        ("PATCH", f"{whole}/serving:scale"),
        ("DELETE", f"{whole}/serving"),
    ):
        stranger.send(method, path, {"replicaCount": 0} if method != "GET" else None)
        assert stranger.status == 404
    stranger.read(f"{PATH}/serving")
    assert stranger.status == 404
    body = make_body(hotLoadTrainerJob=name_job(program))
    stranger.post(f"{NEW}mine", body)
    assert stranger.status == 400
