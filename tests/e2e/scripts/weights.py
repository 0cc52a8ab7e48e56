"""A trained model, saved in every way there is; the age key to encrypt for is the argument."""

import sys

from program import connect, make_datum, open_model, read_logprobs, report, step

service = connect()
model = open_model(service)
for _ in range(3):
    step(model, make_datum(1), make_datum(2))
saved = model.save_state("final", user_metadata={"note": "best"}).result()
spare = model.save_state("spare", ttl_seconds=7200).result()
sampler = model.save_weights_for_sampler("final").result()
plain = model.save_weights_external("hf").result()
secret = model.save_weights_external("sealed", age_encryption_recipients=[sys.argv[1]]).result()
datum = make_datum(1)
scored = model.forward([datum], "cross_entropy").result()
run_id = model.model_id
service.close("success").result()
report(
    run_id=run_id,
    saved=saved.path,
    spare=spare.path,
    sampler=sampler.path,
    plain=plain.path,
    secret=secret.path,
    tokens=datum.model_input.to_ints(),
    targets=datum.loss_fn_inputs["target_tokens"].data,
    logprobs=read_logprobs(scored)[0],
)
