"""Several adapters on one trainer, served in turn by one deployment: each by `weight_sync`."""

import asyncio
import sys
from typing import Any

from fireworks.training.sdk import AdamParams, Datum, FiretitanServiceClient, ModelInput
from program import API_KEY, BASE_URL, MODEL, SHAPE, report

name = sys.argv[1]
TOKENS = [4 + (place * 3) % 200 for place in range(13)]

service = FiretitanServiceClient.from_firetitan_config(
    api_key=API_KEY,
    base_url=BASE_URL,
    base_model=MODEL,
    max_lora_rank=16,
    training_shape_id=SHAPE,
    deployment_id=f"several-{name}",
    hot_load_transition_type="SYNC",
    cleanup_trainer_on_close=True,
    cleanup_deployment_on_close="delete",
)
clients = [service.create_training_client(lora_rank=rank, seed=rank) for rank in (8, 4)]
datum = Datum(
    model_input=ModelInput.from_ints(TOKENS[:-1]), loss_fn_inputs={"target_tokens": TOKENS[1:]}
)


def read_trained(client: Any) -> list[float]:
    result = client.forward([datum], "cross_entropy").result()
    return [float(value) for value in result.loss_fn_outputs[0]["logprobs"].data]


async def ask(sampler: Any) -> Any:
    return await sampler.sample_with_prompt_tokens_result(
        TOKENS, max_tokens=2, temperature=0.0, logprobs=True, echo=True, prompt_cache_key="one"
    )


rounds = []
for client, rate in zip(clients, (1e-2, 2e-2), strict=True):
    client.forward_backward([datum], "cross_entropy").result()
    client.optim_step(AdamParams(learning_rate=rate)).result()
    synced = client.weight_sync().result()
    answered = asyncio.run(ask(service.create_deployment_sampler()))
    (completion,) = answered.completions
    rounds.append(
        {
            "version": synced.version,
            "served": completion.inference_logprobs[: len(TOKENS) - 1],
            "trained": read_trained(client),
            "attempts": answered.attempts,
        }
    )
job_id = service.trainer_job_id
service.close()
report(job_id=job_id, rounds=rounds)
