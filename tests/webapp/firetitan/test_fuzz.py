"""Bodies and names that no SDK sends: a sentence for each, and never a bug's answer."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.webapp.cast import make_run
from tests.webapp.deployments.conftest import make_checkpoint
from tests.webapp.firetitan.conftest import Program
from tests.webapp.firetitan.test_deployments import make_body as make_deployment
from tests.webapp.firetitan.test_jobs import make_body as make_job
from tests.webapp.tinker import fuzz
from webapp.firetitan.models import TrainerJob
from webapp.fleet.models import BaseModel

pytestmark = [pytest.mark.django_db, pytest.mark.slow]

# One world for all bodies: what they leave behind adds up.
one_world = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
INTERNALS = ("Traceback", 'File "', "Internal error", "object at 0x", "<class", "DoesNotExist")
HOT_LOAD = "/hot_load/v1/models/hot_load"
PROMOTION = {"output_model": "m", "trainer_job_id": "j1", "base_model": "tiny-chatml-1m"}
LOADING = {
    "identity": "saved",
    "reset_prompt_cache": True,
    "incremental_snapshot_metadata": {"previous_snapshot_identity": "saved"},
}
# (method, path below the account, a body that is right)
REQUESTS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("POST", "rlorTrainerJobs?rlorTrainerJobId=", make_job(maxContextLength=64)),
    ("POST", "deployments?deploymentId=", make_deployment(annotations={"a": "b"})),
    ("PATCH", "deployments/serving", make_deployment(hotLoadTransitionType="SYNC")),
    ("PATCH", "deployments/serving:scale", {"replicaCount": 1}),
    ("POST", "checkpoints/saved:promote", PROMOTION),
    ("POST", HOT_LOAD, LOADING),
)
READS = ("rlorTrainerJobs/{}", "deployments/{}", "models/{}", "trainingShapes/{}/versions", "{}")
LISTS = ("rlorTrainerJobs", "deployments", "rlorTrainerJobs/j1/checkpoints")

names = st.one_of(st.sampled_from(fuzz.TEXTS), st.text(max_size=12)).filter(
    lambda text: len(text) < 2000 and text not in (".", "..")
)


@pytest.fixture
def world(program: Program, base_model: BaseModel) -> Program:
    run = make_run(program.actor, base_model)
    job = TrainerJob.objects.create(
        project=program.actor.project,
        job_id="j1",
        base_model=base_model,
        asked_model="tiny-chatml-1m",
        inactivity_seconds=60,
    )
    assert run.session is not None
    job.sessions.add(run.session)
    make_checkpoint(run, name="saved")
    program.post("deployments?deploymentId=serving", make_deployment())
    return program


def check(program: Program, answer: Any) -> None:
    assert program.status < 500
    if program.status != 200:
        assert set(answer) == {"code", "message", "details"}
        assert len(answer["message"]) < 2000
        assert not [word for word in INTERNALS if word in answer["message"]], answer


@settings(max_examples=150, suppress_health_check=one_world)
@given(data=st.data())
def test_a_wrong_body_gets_a_sentence(world: Program, data: st.DataObject) -> None:
    method, path, template = data.draw(st.sampled_from(REQUESTS))
    body = data.draw(fuzz.json_bodies(template))
    number = data.draw(st.integers(0, 10**6))
    name = f"accounts/{world.account}/deployments/serving"
    whole = f"{path}x{number}" if path.endswith("=") else path
    headers = {"fireworks-deployment": name}
    check(world, world.send(method, whole, body, **headers))


@settings(max_examples=50, suppress_health_check=one_world)
@given(data=st.data())
def test_a_wrong_name_gets_a_sentence(world: Program, data: st.DataObject) -> None:
    name = data.draw(names)
    path = data.draw(st.sampled_from(READS)).format(quote(name, safe=""))
    check(world, world.read(path))
    query = data.draw(st.sampled_from(("pageSize", "pageToken", "filter")))
    listed = data.draw(st.sampled_from(LISTS))
    check(world, world.read(f"{listed}?{query}={quote(name)}"))
    mask = quote(name)
    check(world, world.send("PATCH", f"deployments/serving?updateMask={mask}", {}))
    body = make_job(baseModel=name)
    check(world, world.post(f"rlorTrainerJobs?rlorTrainerJobId={quote(name)}", body))
