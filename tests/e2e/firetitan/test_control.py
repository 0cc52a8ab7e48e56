"""Jobs, shapes, models and deployments by the SDK's own managers."""

import time

import pytest

from tests.e2e.firetitan.conftest import Begin

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CONTEXT = 512  # of the tiny model


def test_the_managers_make_tell_change_and_delete_what_programs_ask_for(run: Begin) -> None:
    one = f"{time.time_ns()}"
    told = run("control.py", one)
    account = f"accounts/{told['account']}"
    assert told["shape"]["max_supported_context_length"] == CONTEXT
    assert told["shape"]["trainer_mode"] == "LORA_TRAINER"
    endpoint = told["endpoint"]
    assert endpoint["job_name"] == f"{account}/rlorTrainerJobs/job-{one}"
    assert endpoint["max_context_length"] == 64
    assert told["again"] == f"job-{one}"  # a second create takes what is there
    assert told["by_shape"]["max_context_length"] == CONTEXT
    assert told["cancelled"] == "JOB_STATE_CANCELLED"
    assert told["resumed"]["base_url"] == told["by_shape"]["base_url"]
    assert "qwen3-8b-unknown" in told["failure"]
    assert told["unknown"] is None
    assert told["after"]["state"] == "JOB_STATE_DELETED"
    assert told["checkpoints"] == []
    assert told["is_moe"] is False
    assert told["ready"]["state"] == "READY"
    serving = f"{account}/deployments/serving-{one}"
    assert told["reused"]["name"] == serving
    assert told["moved"]["hot_load_trainer_job"] == told["by_shape"]["job_name"]
    assert told["moved"]["hot_load_transition_type"] == "SYNC"
    (replica,) = told["status"]["replicas"]
    assert (replica["readiness"], replica["current_snapshot_identity"]) == (True, None)
    assert told["asleep"]["state"] == "READY"
    assert told["listed"][serving] == 1
    assert endpoint["job_name"] in told["trainers"]  # all pages, of one row each
    assert told["recreated"]["hot_load_trainer_job"] == endpoint["job_name"]
    assert told["gone"] is None
