"""Jobs, shapes, models and deployments by the SDK's two managers: nothing is trained."""

import sys

import httpx
from fireworks import Fireworks
from fireworks.training.sdk import (
    DeploymentConfig,
    DeploymentManager,
    TrainerJobConfig,
    TrainerJobManager,
)
from program import API_KEY, BASE_URL, MODEL, SHAPE, report

name = sys.argv[1]
jobs = TrainerJobManager(api_key=API_KEY, base_url=BASE_URL)
profile = jobs.resolve_training_profile(SHAPE)
config = TrainerJobConfig(
    base_model=MODEL,
    lora_rank=8,
    max_context_length=64,
    display_name=f"job {name}",
    requested_job_id=f"job-{name}",
)
endpoint = jobs.create_and_wait(config)
again = jobs.create(config)
other = TrainerJobConfig(base_model=MODEL, lora_rank=8, training_shape_ref=profile.training_shape)
by_shape = jobs.create_and_wait(other)
wrong = TrainerJobConfig(
    base_model="accounts/fireworks/models/qwen3-8b-unknown", lora_rank=8, max_context_length=64
)
try:
    jobs.create_and_wait(wrong)
    failure = ""
except RuntimeError as error:
    failure = str(error)

deployments = DeploymentManager(api_key=API_KEY, base_url=f"{BASE_URL}/")
wanted = DeploymentConfig(
    deployment_id=f"serving-{name}",
    base_model=MODEL,
    deployment_shape=profile.deployment_shape_version,
    hot_load_trainer_job=endpoint.job_name,
    max_replica_count=1,
)
made = deployments.create_or_get(wanted)
ready = deployments.wait_for_ready(made.deployment_id, timeout_s=60, poll_interval_s=1)
reused = deployments.create_or_get(wanted)
moved = deployments.reattach_trainer(
    made.deployment_id,
    base_model=MODEL,
    trainer_job_name=by_shape.job_name,
    timeout_s=60,
    hot_load_transition_type="SYNC",
)
status = deployments.hotload_check_status(made.deployment_id, MODEL)
deployments.scale_to_zero(made.deployment_id)
asleep = deployments.get(made.deployment_id)
# The client that is generated from the whole API, for what the managers have no call for.
whole = Fireworks(api_key=API_KEY, base_url=BASE_URL, account_id=jobs.account_id)
whole.deployments.scale(made.deployment_id, replica_count=1)
listed = {each.name: each.desired_replica_count for each in whole.deployments.list()}
trainers = [each.name for each in whole.reinforcement_fine_tuning_steps.list(page_size=1)]
recreated = deployments.create_or_get(wanted, force_recreate=True)
deployments.delete(made.deployment_id)

resource = f"{BASE_URL}/v1/{by_shape.job_name}"
httpx.post(f"{resource}:cancel", headers={"X-Api-Key": API_KEY}).raise_for_status()
cancelled = jobs.get(by_shape.job_id)["state"]
resumed = jobs.reconnect_and_wait(by_shape.job_id, poll_interval_s=1)
jobs.delete(by_shape.job_id)
jobs.delete(endpoint.job_id)
report(
    account=jobs.account_id,
    shape=vars(profile),
    endpoint=vars(endpoint),
    again=again.job_id,
    by_shape=vars(by_shape),
    cancelled=cancelled,
    resumed=vars(resumed),
    failure=failure,
    unknown=jobs.try_get("none"),
    after=jobs.get(endpoint.job_id),
    checkpoints=jobs.list_checkpoints(endpoint.job_id),
    is_moe=jobs.model_is_moe(MODEL),
    made=vars(made),
    ready=vars(ready),
    reused=vars(reused),
    status=status,
    moved=vars(moved),
    asleep=vars(asleep),
    listed=listed,
    trainers=trainers,
    recreated=vars(recreated),
    gone=deployments.get(made.deployment_id),
)
