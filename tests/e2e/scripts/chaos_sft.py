"""A whole supervised run: train, save, resume with the optimizer, train on, save again."""

from typing import Any

from program import connect, make_datum, open_model, read_logprobs, report, step


def train(model: Any, steps: range) -> list[float]:
    return [step(model, make_datum(index), make_datum(50 + index, 20)) for index in steps]


service = connect()
model = open_model(service)
losses = train(model, range(6))
saved = model.save_state("half", ttl_seconds=7200).result()
resumed = service.create_training_client_from_state_with_optimizer(saved.path).result()
losses += train(resumed, range(6, 10))
final = resumed.save_weights_for_sampler("final").result()
scored = read_logprobs(resumed.forward([make_datum(99)], "cross_entropy").result())
service.close("success").result()
report(losses=losses, scored=scored, final=final.path)
