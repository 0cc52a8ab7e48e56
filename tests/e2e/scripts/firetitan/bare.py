"""A program on a trainer of its own: FiretitanServiceClient without a deployment, every call of a
training client that needs none.
"""

import json
import os
import sys
from typing import Any

import torch
from fireworks.training.sdk import (
    AdamParams,
    APIStatusError,
    Datum,
    FiretitanServiceClient,
    ModelInput,
    RequestFailedError,
    TrainerJobConfig,
    TrainerJobManager,
)

URL, KEY, BASE = os.environ["FIREWORKS_BASE_URL"], os.environ["FIREWORKS_API_KEY"], sys.argv[1]
RANK = int(sys.argv[2]) if len(sys.argv) > 2 else 8
ADAM = AdamParams(
    learning_rate=1e-2 if RANK else 1e-3, beta1=0.9, beta2=0.95, eps=1e-12, weight_decay=0.0
)


def make_datum(first: int, length: int = 12) -> Datum:
    tokens = [4 + (first * 7 + place * 3) % 200 for place in range(length + 1)]
    weights = [0.0] * 2 + [1.0] * (length - 2)
    return Datum(
        model_input=ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights},
    )


def sum_losses(
    data: list[Datum], logprobs: list[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    picked = [
        -(row * torch.tensor(datum.loss_fn_inputs["weights"].data)).sum()
        for datum, row in zip(data, logprobs, strict=True)
    ]
    loss = torch.stack(picked).sum() / 20
    return loss, {"mine": float(loss.detach())}


def read_logprobs(output: Any) -> list[float]:
    return [value for one in output.loss_fn_outputs for value in one["logprobs"].data]


def differ(one: Any, other: Any) -> float:
    pairs = zip(read_logprobs(one), read_logprobs(other), strict=True)
    return max(abs(left - right) for left, right in pairs)


manager = TrainerJobManager(api_key=KEY, base_url=URL)
endpoint = manager.create_and_wait(
    TrainerJobConfig(base_model=BASE, lora_rank=RANK, display_name="bare-program"),
    poll_interval_s=0.5,
)
report: dict[str, Any] = {"job_id": endpoint.job_id}
service = FiretitanServiceClient(base_url=endpoint.base_url, api_key=KEY)
client = service.create_training_client(base_model=BASE, lora_rank=RANK, seed=3)
reference = service.create_base_training_client(BASE)
report["capabilities"] = [
    model.model_name for model in service.get_server_capabilities().supported_models
]
info = client.get_info()
report["info"] = {"is_lora": info.is_lora, "rank": info.lora_rank, "name": info.model_name}
data = [make_datum(number) for number in range(4)]

before = client.forward(data, "cross_entropy").result()
report["start_differs_from_base"] = differ(
    before, reference.forward(data, "cross_entropy").result()
)
losses = []
for _ in range(3):
    passed = client.forward_backward(data, "cross_entropy")
    stepped = client.optim_step(ADAM, grad_accumulation_normalization="num_loss_tokens")
    losses.append(passed.result().metrics["loss:sum"])
    report["step_metrics"] = sorted(stepped.result().metrics)
report["losses"] = losses

custom = client.forward_backward_custom(data, sum_losses).result()
client.optim_step(ADAM).result()
report["custom"] = custom.metrics["mine"]

saved = client.save_state("state_1").result()
report["saved"] = saved.path
after_save = client.forward(data, "cross_entropy").result()
client.forward_backward(data, "cross_entropy").result()
client.optim_step(ADAM).result()
later = client.forward(data, "cross_entropy").result()
client.load_state_with_optimizer(saved.path).result()
report["trained_on_differs"] = differ(after_save, later)
report["loaded_differs"] = differ(after_save, client.forward(data, "cross_entropy").result())
client.load_state(f"cross_job://{endpoint.job_id}/{saved.path}").result()
report["listed"] = client.list_checkpoints()

snapshots = [client.save_weights_for_sampler_ext(f"step-{number}") for number in range(2)]
report["snapshots"] = [snapshot.snapshot_name for snapshot in snapshots]
report["rows"] = [
    {key: row[key] for key in ("name", "checkpointType", "promotable")}
    for row in manager.list_checkpoints(endpoint.job_id)
]

failures = {}
for name, attempt in {
    "loss": lambda: client.forward_backward(data, "no_such_loss").result(),
    "reference": lambda: reference.forward_backward(data, "cross_entropy").result(),
    "state": lambda: client.load_state("never-saved").result(),
}.items():
    try:
        attempt()
    except (APIStatusError, RequestFailedError) as error:
        failures[name] = f"{type(error).__name__}: {error}"
report["failures"] = failures
report["works_on"] = client.forward(data, "cross_entropy").result().metrics["loss:sum"]
client.unload_model().result()
manager.delete(endpoint.job_id)
service.holder.close()
print(json.dumps(report))
