"""What may be asked of a pass: each loss, vectors of the data, and batches that go in pieces."""

from typing import Any

import torch
from fireworks.training.sdk import (
    AdamParams,
    Datum,
    FiretitanServiceClient,
    GradAccNormalization,
    ModelInput,
    TensorData,
    TrainerJobConfig,
    TrainerJobManager,
)
from program import API_KEY, BASE_URL, MODEL, report

LOSSES = (*("importance_sampling", "ppo", "cispo", "dro", "dapo", "gspo", "dppo", "reinforce"),)
STEPS = 4
ADAM = AdamParams(learning_rate=4e-3, beta1=0.9, beta2=0.95, eps=1e-12, weight_decay=0.0)
MANY = 1100  # datums: the SDK cuts a batch at 1024


def make_tokens(first: int, length: int) -> list[int]:
    return [4 + (first * 7 + place * 3) % 200 for place in range(length)]


def make_datum(first: int, length: int = 8, **inputs: Any) -> Datum:
    tokens = make_tokens(first, length + 1)
    return Datum(
        model_input=ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], **inputs},
    )


def make_policy_datum(first: int, logprobs: list[float]) -> Datum:
    advantages = [0.0, 0.0] + [1.0, -1.0][first % 2 : first % 2 + 1] * (len(logprobs) - 2)
    return make_datum(first, logprobs=logprobs, advantages=advantages)


def spread(_data: list[Datum], vectors: list[Any]) -> tuple[Any, dict[str, float]]:
    """How far all vectors lie from the first one."""
    loss = torch.stack([((vector - vectors[0]) ** 2).mean() for vector in vectors]).mean()
    return loss, {"spread": float(loss.detach())}


def spread_of_values(_data: list[Datum], values: list[Any]) -> tuple[Any, dict[str, float]]:
    """How far every token's values lie from 1."""
    loss = torch.stack([((each - 1) ** 2).mean() for each in values]).mean()
    return loss, {"spread": float(loss.detach())}


def likeness(_data: list[Datum], matrix: Any) -> tuple[Any, dict[str, float]]:
    rows = torch.stack(list(matrix)) if isinstance(matrix, list | tuple) else matrix
    loss = rows.sum() / rows.numel()
    return loss, {"likeness": float(loss.detach())}


manager = TrainerJobManager(api_key=API_KEY, base_url=BASE_URL)
endpoint = manager.create_and_wait(
    TrainerJobConfig(base_model=MODEL, lora_rank=4, display_name="objectives"),
    poll_interval_s=0.5,
)
service = FiretitanServiceClient(base_url=endpoint.base_url, api_key=API_KEY)
client = service.create_training_client(base_model=MODEL, lora_rank=4)
plain = [make_datum(number) for number in range(4)]
scored = client.forward(plain, "cross_entropy").result()
logprobs = [one["logprobs"].data for one in scored.loss_fn_outputs]

losses = {}
for name in LOSSES:
    data = [make_policy_datum(number, logprobs[number]) for number in range(4)]
    losses[name] = client.forward_backward(data, name).result().metrics["loss:sum"]

norms = {}
client.optim_step(ADAM).result()
for kind in (GradAccNormalization.NONE, GradAccNormalization.NUM_SEQUENCES, "num_loss_tokens"):
    client.forward_backward(plain, "cross_entropy").result()
    stepped = client.optim_step(
        AdamParams(learning_rate=0.0, beta1=0.9, beta2=0.95, eps=1e-12, weight_decay=0.0),
        grad_accumulation_normalization=kind,
    )
    norms[str(getattr(kind, "value", kind))] = stepped.result().metrics["grad_norm"]

# Each by a model of its own: what an optimizer remembers would pull a step of the next one along.
vectors = {}
for output, loss_fn in (("embedding", spread), ("cos_similarity_matrix", likeness)):
    learner, told = service.create_training_client(base_model=MODEL, lora_rank=2 + len(vectors)), []
    for _ in range(STEPS):
        passed = learner.forward_backward_custom(plain, loss_fn, output=output, pooling="last")
        told.append(passed.result().metrics[loss_fn.__name__])
        learner.optim_step(ADAM).result()
    vectors[output] = told
learner, contrastive = service.create_training_client(base_model=MODEL, lora_rank=8), []
for _ in range(STEPS):
    passed = learner.forward_backward_contrastive(plain, num_queries=2, temperature=0.1).result()
    contrastive.append(passed.metrics["loss"])
    learner.optim_step(ADAM).result()

critic, values = (
    service.create_training_client(base_model=MODEL, lora_rank=4, projection_head_dim=3),
    [],
)
projected = critic.forward_projection(plain).result().loss_fn_outputs[0]["projection"]
for _ in range(STEPS):
    passed = critic.forward_backward_custom(plain, spread_of_values, output="projection")
    values.append(passed.result().metrics["spread"])
    critic.optim_step(ADAM).result()
vectors["projection"] = values

many = client.forward([make_datum(number, 3) for number in range(MANY)], "cross_entropy").result()
sparse = TensorData(
    data=[0.5, 0.5],
    dtype="float32",
    shape=[8, 2],
    sparse_crow_indices=[0, 0, 0, 0, 0, 0, 0, 1, 2],
    sparse_col_indices=[0, 1],
)
columns = TensorData(data=[5] * 16, dtype="int64", shape=[8, 2])
candidates = client.forward(
    [
        Datum(
            model_input=ModelInput.from_ints(make_tokens(0, 8)),
            loss_fn_inputs={"target_tokens": columns, "weights": sparse},
        )
    ],
    "cross_entropy",
).result()
manager.delete(endpoint.job_id)
service.holder.close()
report(
    losses=losses,
    norms=norms,
    vectors=vectors,
    contrastive=contrastive,
    projected=list(projected.shape),
    num_outputs=len(many.loss_fn_outputs),
    num_tokens=many.metrics["num_tokens:sum"],
    candidates=list(candidates.loss_fn_outputs[0]["logprobs"].shape),
)
