"""The default loop of research programs: a trainer and a deployment of its own, an objective of its
own, each snapshot loaded into the deployment, and answers with their log-probabilities from there.
"""

import asyncio
import sys
from typing import Any

import httpx
import torch
import transformers
from fireworks.training.sdk import (
    AdamParams,
    AdaptiveConcurrencyController,
    Datum,
    DeploymentConfig,
    DeploymentManager,
    DeploymentSampler,
    FiretitanServiceClient,
    ModelInput,
    TrainerJobConfig,
    TrainerJobManager,
    WeightSyncer,
)
from program import API_KEY, BASE_URL, MODEL, report

name = sys.argv[1]
ADAM = AdamParams(learning_rate=1e-3)
MESSAGES = [{"role": "user", "content": "What is 7 - 5?"}]

jobs = TrainerJobManager(api_key=API_KEY, base_url=BASE_URL)
endpoint = jobs.create_and_wait(
    TrainerJobConfig(base_model=MODEL, lora_rank=0, max_context_length=256, display_name=name)
)
deployments = DeploymentManager(api_key=API_KEY, base_url=BASE_URL)
deployments.create_or_get(
    DeploymentConfig(
        deployment_id=f"research-{name}",
        base_model=MODEL,
        min_replica_count=1,
        hot_load_trainer_job=endpoint.job_name,
    )
)
deployment = deployments.wait_for_ready(f"research-{name}", poll_interval_s=1)

service = FiretitanServiceClient(base_url=endpoint.base_url, api_key=API_KEY)
client = service.create_training_client(base_model=MODEL, lora_rank=0)
syncer = WeightSyncer(
    policy_client=client,
    deploy_mgr=deployments,
    deployment_id=deployment.deployment_id,
    base_model=MODEL,
)
sampler = DeploymentSampler(
    inference_url=BASE_URL,
    model=deployment.inference_model,
    api_key=API_KEY,
    concurrency_controller=AdaptiveConcurrencyController(initial_window=4),
    tokenizer=transformers.AutoTokenizer.from_pretrained("tests/assets/tiny-chatml-1m"),
)


def likely(data: list[Datum], logprobs_list: list[torch.Tensor]) -> tuple[torch.Tensor, Any]:
    loss = -torch.stack([row.sum() for row in logprobs_list]).sum()
    return loss, {"loss": float(loss.detach())}


def make_datum(tokens: list[int]) -> Datum:
    return Datum(
        model_input=ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:]},
    )


def read_trained(tokens: list[int]) -> list[float]:
    result = client.forward([make_datum(tokens)], "cross_entropy").result()
    return [float(value) for value in result.loss_fn_outputs[0]["logprobs"].data]


async def sample(**options: Any) -> Any:
    return await sampler.sample_with_tokens(
        MESSAGES, max_tokens=6, temperature=1.0, max_seq_len=200, logprobs=True, seed=5, **options
    )


async def run() -> dict[str, Any]:
    rounds = []
    before = await sample(n=2)
    for number in range(2):
        tokens = before[0].full_tokens
        result = client.forward_backward_custom([make_datum(tokens)], likely).result()
        client.optim_step(ADAM).result()
        snapshot = await asyncio.to_thread(syncer.save_and_hotload, f"step-{number}")
        (echoed,) = await sample(echo=True)
        rounds.append(
            {
                "loss": result.metrics["loss"],
                "snapshot": snapshot,
                "current": syncer.check_deployment_state(),
                "served": echoed.inference_logprobs,
                "sampled": echoed.sampling_logprobs,
                "trained": read_trained(echoed.full_tokens),
                "is_echoed": echoed.logprobs_echoed,
            }
        )
    too_long = await sampler.sample_with_tokens(MESSAGES, max_seq_len=4)
    # Back to the first snapshot by its name, as a program does that compares or rolls back.
    await asyncio.to_thread(syncer.hotload, rounds[0]["snapshot"], "base")
    back = syncer.check_deployment_state()
    (echoed,) = await sample(echo=True)
    deployments.scale_to_zero(deployment.deployment_id)
    woken = await sample(n=1)
    return {
        "before": [vars(each) for each in before],
        "rounds": rounds,
        "too_long": too_long,
        "back": back,
        "back_served": echoed.inference_logprobs[: before[0].prompt_len - 1],
        "woken": woken[0].finish_reason,
        "timing": syncer.last_timing,
        "metrics": [vars(each) for each in sampler.drain_metrics()][:1],
    }


told = asyncio.run(run())
refused = 0
try:
    deployments.hotload_and_wait(deployment.deployment_id, MODEL, "never-saved")
except httpx.HTTPStatusError as error:
    refused = error.response.status_code
rows = jobs.list_checkpoints(endpoint.job_id)
deployments.delete(deployment.deployment_id)
jobs.delete(endpoint.job_id)
report(
    job_id=endpoint.job_id,
    types=[(row["checkpointType"], row["promotable"]) for row in rows],
    refused=refused,
    **told,
)
