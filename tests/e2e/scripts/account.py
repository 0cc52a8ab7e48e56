"""Who the SDK says it is, and that everything else works by the token it exchanged its key for."""

import tinker
from program import connect, make_datum, open_model, report, step

who = tinker.RestClient().whoami().result()
service = connect()
model = open_model(service)
loss = step(model, make_datum(1))
sampler = model.save_weights_and_get_sampling_client().result()
prompt = tinker.types.ModelInput.from_ints([5, 6, 7])
params = tinker.types.SamplingParams(max_tokens=3)
answer = sampler.sample(prompt, sampling_params=params, num_samples=2).result()
service.close("success").result()
report(
    user=who.user_urn,
    organization=who.org_urn,
    email=who.email,
    loss=loss,
    num_sequences=len(answer.sequences),
)
