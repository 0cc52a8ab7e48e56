"""Goes on from a checkpoint of all weights that was trained in the browser, and samples from it."""

import sys
from typing import Any

from program import connect, make_datum, read_logprobs, report, step, types

service = connect()
model = service.create_training_client_from_state_with_optimizer(sys.argv[1]).result()
info = model.get_info()
datum = make_datum(1)
tokens = types.ModelInput.from_ints(datum.model_input.to_ints())
losses = [step(model, datum) for _ in range(4)]
paths = [model.save_weights_for_sampler("first").result().path]
losses.append(step(model, datum))
paths.append(model.save_weights_for_sampler("second").result().path)
scored = read_logprobs(model.forward([datum], "cross_entropy").result())[0]


def score(path: str) -> list[float]:
    client = service.create_sampling_client(model_path=path).result()
    return [value for value in client.compute_logprobs(tokens).result() if value is not None]


def sample(path: str) -> Any:
    client = service.create_sampling_client(model_path=path).result()
    greedy = types.SamplingParams(max_tokens=6, temperature=0.0)
    response = client.sample(tokens, num_samples=1, sampling_params=greedy).result()
    return list(response.sequences[0].tokens)


report(
    is_lora=info.is_lora,
    lora_rank=info.lora_rank,
    losses=losses,
    paths=paths,
    scored=scored,
    scores=[score(path) for path in paths],
    samples=[sample(path) for path in paths],
    model_id=model.model_id,
)
service.close("success").result()
