"""A managed service as seed programs have it: trainer and deployment are made by the first client,
what is saved is served, and closing cleans up. The first argument names all of it, the second is
the rank, 0 for all weights.
"""

import sys
from typing import Any

import torch
from fireworks.training.sdk import (
    AdamParams,
    Datum,
    FiretitanServiceClient,
    GradAccNormalization,
    ModelInput,
    SamplingParams,
)
from program import API_KEY, BASE_URL, MODEL, SHAPE, report

name, rank = sys.argv[1], int(sys.argv[2])
ADAM = AdamParams(
    learning_rate=5e-3 if rank else 1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01
)


def open_service(**options: Any) -> FiretitanServiceClient:
    return FiretitanServiceClient.from_firetitan_config(
        api_key=API_KEY,
        base_url=BASE_URL,
        base_model=MODEL,
        tokenizer_model="tests/assets/tiny-chatml-1m",
        lora_rank=rank,
        training_shape_id=SHAPE,
        deployment_id=f"managed-{name}",
        learning_rate=1e-5,
        **options,
    )


service = open_service(
    replica_count=1,
    cleanup_trainer_on_close=True,
    cleanup_deployment_on_close="scale_to_zero",
)
client = service.create_training_client(base_model=MODEL, lora_rank=rank)


def make_datum(first: int, length: int = 12) -> Datum:
    tokens = [4 + (first * 7 + place * 3) % 200 for place in range(length + 1)]
    return Datum(
        model_input=ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * length},
    )


data = [make_datum(number) for number in range(3)]
prompt = ModelInput.from_ints([*data[0].model_input.to_ints(), 4 + (12 * 3) % 200])


def step(normalization: GradAccNormalization = GradAccNormalization.NUM_LOSS_TOKENS) -> float:
    result = client.forward_backward(data, "cross_entropy").result()
    client.optim_step(ADAM, grad_accumulation_normalization=normalization).result()
    return float(result.metrics["loss:sum"])


def spread(data: list[Datum], embeddings: list[torch.Tensor]) -> tuple[torch.Tensor, Any]:
    loss = torch.stack([(row * row).mean() for row in embeddings]).sum()
    return loss, {"spread": float(loss.detach())}


def read_trained() -> list[float]:
    result = client.forward(data[:1], "cross_entropy").result()
    return [float(value) for value in result.loss_fn_outputs[0]["logprobs"].data]


def serve(label: str) -> dict[str, Any]:
    """What was saved, as the deployment scores it, beside what the trainer says."""
    saved = client.save_weights_for_sampler(label).result()
    sampler = service.create_sampling_client(model_path=saved.path)
    served = [value for value in sampler.compute_logprobs(prompt).result() if value is not None]
    greedy = SamplingParams(max_tokens=4, temperature=0.0)
    answers = sampler.sample(prompt=prompt, num_samples=2, sampling_params=greedy).result()
    return {
        "path": saved.path,
        "served": served,
        "trained": read_trained(),
        "answers": [list(each.tokens) for each in answers.sequences],
        "logprobs": [list(each.logprobs) for each in answers.sequences],
    }


def reattach(model_name: str) -> dict[str, Any]:
    """Another program takes the same trainer and deployment, and begins with the promoted model."""
    other = open_service(trainer_job_id=service.trainer_job_id)
    successor = other.create_training_client(base_model=MODEL, lora_rank=rank)
    successor.load_adapter(model_name).result()
    begun = successor.forward(data[:1], "cross_entropy").result()
    source = successor.resolve_checkpoint_path(state.path, source_job_id=service.trainer_job_id)
    successor.load_state_with_optimizer(source).result()
    resumed = successor.forward(data[:1], "cross_entropy").result()
    told = {
        "source": source,
        "resumed": [float(value) for value in resumed.loss_fn_outputs[0]["logprobs"].data],
        "job_id": other.trainer_job_id,
        "needs_sync": other.requires_initial_sampler_sync(),
        "begun": [float(value) for value in begun.loss_fn_outputs[0]["logprobs"].data],
    }
    successor.unload_model().result()
    other.close()
    return told


losses = [step(normalization) for normalization in GradAccNormalization]
embedded = client.forward_backward_custom(data, spread, output="embedding", pooling="mean").result()
client.optim_step(AdamParams(learning_rate=1e-6)).result()
first = serve("step-1")
state = client.save_state("train_state_step_100").result()
losses.append(step())
second = serve("step-2")
client.load_state_with_optimizer(state.path).result()
restored = read_trained()

reference = service.create_reference_client(MODEL, lora_rank=rank)
frozen = reference.forward(data[:1], "cross_entropy").result()
rows = service.list_checkpoints(service.trainer_job_id)
promotable = [row["name"] for row in rows if row["promotable"]]
model = service.promote_checkpoint(
    name=promotable[0], output_model_id=f"model-{name}", base_model=MODEL
)
info = client.get_info()
again = reattach(model["name"]) if rank else {}
report(
    job_id=service.trainer_job_id,
    deployment_id=service.deployment_id,
    reference_job_id=service.reference_trainer_job_id,
    max_context_length=service.max_context_length,
    losses=losses,
    spread=embedded.metrics["spread"],
    first=first,
    second=second,
    state=state.path,
    states=client.list_checkpoints(),
    restored=restored,
    frozen=[float(value) for value in frozen.loss_fn_outputs[0]["logprobs"].data],
    rows=rows,
    model=model,
    capabilities=[each.model_name for each in service.get_server_capabilities().supported_models],
    again=again,
    is_lora=info.is_lora,
)
service.close()
