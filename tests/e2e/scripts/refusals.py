"""Every mistake is told at once, in a sentence, and the program can go on after it."""

from collections.abc import Callable
from typing import Any

import tinker
from program import MODEL, connect, make_datum, open_model, report, step, types

service = connect()
model = open_model(service)
sampler = service.create_sampling_client(base_model=MODEL).result()


def tell(act: Callable[[], Any]) -> str:
    try:
        act()
    except (tinker.APIError, tinker.TinkerError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def train(
    loss_fn: str = "cross_entropy", tokens: tuple[int, ...] = (5, 6, 7), **inputs: Any
) -> Callable[[], Any]:
    inputs = {"target_tokens": [6, 7, 8], **inputs}
    datum = types.Datum(model_input=types.ModelInput.from_ints(list(tokens)), loss_fn_inputs=inputs)
    return lambda: model.forward_backward([datum], loss_fn).result()


def sample(*tokens: int, **given: Any) -> Callable[[], Any]:
    prompt = types.ModelInput.from_ints(list(tokens))
    params = types.SamplingParams(**given)
    return lambda: sampler.sample(prompt, num_samples=1, sampling_params=params).result()


def create(**options: Any) -> Callable[[], Any]:
    options = {"base_model": MODEL, "rank": 8} | options
    return lambda: service.create_lora_training_client(**options).result()


nan = {"advantages": [1.0, float("nan"), 1.0], "logprobs": [-1.0] * 3}
told = {
    "rank 0": tell(create(rank=0)),
    "rank 10000": tell(create(rank=10_000)),
    "model": tell(create(base_model="acme/none")),
    "token": tell(train(tokens=(5, 6, 999_999))),
    "target": tell(train(target_tokens=[6, 7, 999_999])),
    "length": tell(train(weights=[1.0, 1.0])),
    "nan": tell(train("importance_sampling", **nan)),
    "missing": tell(train("ppo")),
    "loss": tell(train("no_such_loss", **nan)),
    "checkpoint": tell(
        lambda: service.create_training_client_from_state("tinker://x:train:0/weights/y").result()
    ),
    "context": tell(sample(5, 6, max_tokens=100_000)),
    "prompt": tell(sample(999_999, max_tokens=4)),
    "part": tell(lambda: step(model, make_datum(0))),  # what was refused above is missing in it
}
loss = step(model, make_datum(1))
service.close("success").result()
report(told=told, loss=loss)
