"""Losses over what was sampled, with its provenance, and a model whose optimizer is dimuon."""

import numpy as np
import tinker
from program import MODEL, connect, report, types

PROMPT = list(range(5, 25))
DIMUON = types.DimuonOptimizerConfig()
STEP = types.DimuonParams(learning_rate=0.02)

service = connect()
model = service.create_lora_training_client(
    base_model=MODEL, rank=8, seed=7, optimizer=DIMUON
).result()
sampler = model.save_weights_and_get_sampling_client(record_stability_info=True)
params = types.SamplingParams(max_tokens=6, seed=3, stop=[])
sampled = sampler.sample(types.ModelInput.from_ints(PROMPT), 2, params).result().sequences


def make_datum(sequence: object, advantage: float) -> types.Datum:
    tokens = PROMPT + list(sequence.tokens)
    drawn, given = len(sequence.tokens), len(PROMPT)
    on = np.array([0.0] * (given - 1) + [1.0] * drawn, np.float32)
    quiet = np.zeros(given - 1, np.float32)
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tokens[1:],
            "logprobs": np.concatenate([quiet, np.array(sequence.logprobs, np.float32)]),
            "advantages": advantage * on,
            "sequence_ratio_mask": on,
        },
    )
    name = sequence.sequence_id
    return datum.with_provenance(
        model_input=[
            types.PromptProvenanceSpan(sequence_id=name, length=given),
            types.SampledProvenanceSpan(sequence_id=name, length=drawn - 1),
        ],
        loss_fn_inputs=[
            types.PromptProvenanceSpan(sequence_id=name, offset=1, length=given - 1),
            types.SampledProvenanceSpan(sequence_id=name, length=drawn),
        ],
    )


data = [make_datum(sampled[0], 1.0), make_datum(sampled[1], -0.5)]
losses, metrics = {}, {}
for loss_fn, config in {
    "importance_sampling": None,
    "gspo": {"clip_low_threshold": 0.5, "clip_high_threshold": 2.0},
    "stable_reinforce": {"kl_coeff": 0.1},
}.items():
    output = model.forward(data, loss_fn, loss_fn_config=config).result()
    losses[loss_fn], metrics = output.metrics["loss:sum"], output.metrics


def train(client: object, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        gradient = client.forward_backward(data, "stable_reinforce")
        update = client.optim_step(STEP)
        found.append(gradient.result().metrics["loss:sum"])
        update.result()
    return found


train(model, 2)
saved = model.save_state("second").result()
went_on = train(model, 2)
resumed = service.create_training_client_from_state_with_optimizer(saved.path).result()
fresh = service.create_training_client_from_state(saved.path, optimizer=DIMUON).result()
refused = ""
try:
    model.optim_step(types.AdamParams()).result()
except tinker.BadRequestError as error:
    refused = str(error)
info = service.create_rest_client().get_weights_info_by_tinker_path(saved.path).result()
report(
    losses=losses,
    metrics=metrics,
    went_on=went_on,
    resumed=train(resumed, 2),
    fresh=train(fresh, 2),
    refused=refused,
    optimizers=[
        info.optimizer_config.type,
        resumed.get_info().optimizer_config.type,
        fresh.get_info().optimizer_config.type,
    ],
)
