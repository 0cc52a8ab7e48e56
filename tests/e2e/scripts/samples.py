"""Samples from trained weights and from the base model, with log-probabilities."""

from typing import Any

from program import MODEL, connect, make_datum, open_model, read_logprobs, report, step, types

service = connect()
model = open_model(service)
for _ in range(5):
    step(model, make_datum(1))
trained = model.save_weights_and_get_sampling_client().result()
named = model.save_weights_for_sampler("served").result().path
again = service.create_sampling_client(model_path=named).result()
base = service.create_sampling_client(base_model=MODEL).result()

datum = make_datum(1)
tokens = datum.model_input.to_ints()
scored = read_logprobs(model.forward([datum], "cross_entropy").result())[0]
greedy = types.SamplingParams(max_tokens=6, temperature=0.0)
prompt = types.ModelInput.from_ints(tokens[:5])


def sample(client: Any, params: types.SamplingParams, **options: Any) -> list[dict[str, Any]]:
    response = client.sample(prompt, sampling_params=params, **options).result()
    return [
        {"tokens": list(each.tokens), "logprobs": list(each.logprobs), "stop": each.stop_reason}
        for each in response.sequences
    ]


warm = types.SamplingParams(max_tokens=4, seed=11)
first_token = sample(trained, greedy, num_samples=1)[0]["tokens"][0]
stopping = types.SamplingParams(max_tokens=6, temperature=0.0, stop=[first_token])
report(
    trained=sample(trained, greedy, num_samples=1),
    again=sample(again, greedy, num_samples=1),
    base=sample(base, greedy, num_samples=1),
    several=sample(trained, warm, num_samples=3),
    stopped=sample(trained, stopping, num_samples=1),
    first_token=first_token,
    scored=scored,
    prompt_logprobs=list(trained.compute_logprobs(types.ModelInput.from_ints(tokens)).result()),
    base_model=base.get_base_model(),
)
service.close("success").result()
