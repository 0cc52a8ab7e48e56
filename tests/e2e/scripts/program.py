"""What every script of an SDK user begins with. Each prints one JSON object, its result."""

import json
import os
import warnings
from typing import Any

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
from tinker import ServiceClient, types  # noqa: E402

MODEL = "tiny-chatml-1m"
ADAM = types.AdamParams(learning_rate=1e-3)


def connect(**options: Any) -> ServiceClient:
    """TINKER_BASE_URL and TINKER_API_KEY say where and who: nothing else is configured."""
    return ServiceClient(display_name=os.environ.get("RUN_NAME"), **options)


def open_model(service: ServiceClient, rank: int = 8) -> Any:
    return service.create_lora_training_client(base_model=MODEL, rank=rank, seed=7).result()


def make_datum(seed: int, num_tokens: int = 12) -> types.Datum:
    ids = np.random.default_rng(seed).integers(5, 500, num_tokens + 1).tolist()
    inputs = {"target_tokens": ids[1:], "weights": [1.0] * num_tokens}
    return types.Datum(model_input=types.ModelInput.from_ints(ids[:-1]), loss_fn_inputs=inputs)


def step(model: Any, *data: types.Datum) -> float:
    """Both are submitted before either is waited for, as the cookbook does."""
    gradient = model.forward_backward(list(data), "cross_entropy")
    update = model.optim_step(ADAM)
    loss = gradient.result().metrics["loss:sum"]
    update.result()
    return loss


def read_logprobs(output: Any) -> list[list[float]]:
    return [each["logprobs"].tolist() for each in output.loss_fn_outputs]


def report(**result: Any) -> None:
    print(json.dumps(result))
