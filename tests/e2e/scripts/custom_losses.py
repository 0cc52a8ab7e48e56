"""One loss three ways: on the server, in the client as the same handle, and as a plain callable."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tinker
import torch
from program import ADAM, connect, open_model, read_logprobs, report, types

RANKS = {"logprobs": 1, "sampled": 1, "advantages": 1, "mask": 1}


def clipped(logprobs, sampled, advantages, mask):  # noqa: ANN001, ANN201 - a user's own function
    count = torch.clamp(mask.sum(), min=1.0)
    normal = (advantages - (advantages * mask).sum() / count) / (advantages.std() + 1e-6)
    gap = torch.clamp(logprobs - sampled, -5.0, 5.0)
    ratio = torch.exp(gap)
    bounded = torch.clamp(ratio, 0.8, 1.2)
    policy = -(torch.minimum(ratio * normal, bounded * normal) * mask).sum()
    drift = ((torch.exp(-gap) - 1 + gap) * mask).sum()
    near = torch.nn.functional.smooth_l1_loss(logprobs[1:], logprobs[:-1].detach())
    loss = policy + 0.1 * drift + 0.05 * near / logprobs.shape[0]
    return loss, {
        "custom/drift:sum": drift.detach(),
        "custom/clipped:mean": ((ratio - bounded).abs() > 0).float().mean(),
    }


def make_datum(seed: int, length: int) -> types.Datum:
    random = np.random.default_rng(seed)
    ids = random.integers(5, 500, length + 1).tolist()
    inputs = {
        "target_tokens": ids[1:],
        "sampled": torch.tensor(random.uniform(-7, -5, length), dtype=torch.float32),
        "advantages": random.normal(size=length).tolist(),
        "mask": torch.tensor(random.random(length) < 0.7).float(),
    }
    return types.Datum(model_input=types.ModelInput.from_ints(ids[:-1]), loss_fn_inputs=inputs)


def sum_all(data: list[types.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, Any]:
    """The same for `forward_backward_custom` of older programs: all datums at once."""
    total, sums = torch.zeros(()), {"custom/drift:sum": 0.0, "custom/clipped:mean": 0.0}
    for datum, own in zip(data, logprobs, strict=True):
        names = ("sampled", "advantages", "mask")
        loss, metrics = clipped(own, *(datum.loss_fn_inputs[name].to_torch() for name in names))
        total = total + loss
        sums["custom/drift:sum"] += metrics["custom/drift:sum"].item()
        sums["custom/clipped:mean"] += metrics["custom/clipped:mean"].item() / len(data)
    return total, sums


def train(loss: Any) -> dict[str, Any]:
    """Two steps, and what the model says after them."""
    model = open_model(service)
    metrics = []
    for _ in range(2):
        gradient = model.forward_backward_custom(data, loss)
        update = model.optim_step(ADAM)
        metrics.append(gradient.result().metrics)
        update.result()
    after = model.forward(data, "cross_entropy").result()
    return {"metrics": metrics, "logprobs": read_logprobs(after)}


def distil(logprobs, target_distribution):  # noqa: ANN001, ANN201
    loss = -(target_distribution * logprobs).sum()
    return loss, {"custom/best:mean": logprobs.max(dim=-1).values.mean()}


def make_candidates(seed: int) -> types.Datum:
    random = np.random.default_rng(seed)
    ids = random.integers(5, 500, 9 + seed)
    inputs = {
        "target_tokens": torch.tensor(random.integers(5, 500, (len(ids), 3))),
        "target_distribution": torch.tensor(random.dirichlet(np.ones(3), len(ids))).float(),
    }
    return types.Datum(model_input=types.ModelInput.from_ints(ids.tolist()), loss_fn_inputs=inputs)


def weigh(loss: Any) -> dict[str, float]:
    """Two gradients of several targets a position: the second is after a step."""
    model = open_model(service)
    candidates = [make_candidates(seed) for seed in range(4)]
    model.forward_backward_custom(candidates, loss).result()
    model.optim_step(ADAM).result()
    metrics = model.forward_backward_custom(candidates, loss).result().metrics
    return {key: metrics[key] for key in ("loss:sum", "custom/best:mean")}


def tell(act: Callable[[], Any]) -> str:
    try:
        act()
    except (tinker.APIError, tinker.TinkerError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def draws(logprobs, weights):  # noqa: ANN001, ANN201
    return (logprobs * torch.rand_like(weights)).sum(), {}


def reaches(logprobs, weights):  # noqa: ANN001, ANN201
    return (logprobs * weights)[20], {}


def expands(logprobs, weights):  # noqa: ANN001, ANN201
    return (logprobs * weights).sum().expand(10**9).sum(), {}


def plain(logprobs, weights):  # noqa: ANN001, ANN201
    return -(logprobs * weights).sum(), {"custom/length:mean": weights.sum()}


def create(loss: Any) -> Any:
    return service.create_custom_loss(loss, {"logprobs": 1, "weights": 1}).result()


def make_plain(seed: int, length: int) -> types.Datum:
    datum = make_datum(seed, length)
    inputs = {"target_tokens": datum.loss_fn_inputs["target_tokens"], "weights": [1.0] * length}
    return types.Datum(model_input=datum.model_input, loss_fn_inputs=inputs)


service = connect()
data = [make_datum(seed, 8 + 3 * seed) for seed in range(5)]
handle = service.create_custom_loss(clipped, RANKS).result()
local = dataclasses.replace(handle, loss_id=None)
again = service.create_custom_loss(plain, {"logprobs": 1, "weights": 1}).result()

several = service.create_custom_loss(distil, {"logprobs": 2, "target_distribution": 2}).result()

model = open_model(service)
short = make_plain(0, 8)
told = {
    "draws": tell(lambda: create(draws)),
    "reaches": tell(lambda: model.forward_backward_custom([short], create(reaches)).result()),
    "step": tell(lambda: model.optim_step(ADAM).result()),
    "expands": tell(lambda: model.forward_backward_custom([short], create(expands)).result()),
    "unknown": tell(
        lambda: model.forward_backward([short], "custom", {"loss_id": "loss-unknown"}).result()
    ),
    "next step": tell(lambda: model.optim_step(ADAM).result()),
}
many = [make_plain(seed, 2 + seed % 3) for seed in range(1100)]  # two requests of one call
sums = model.forward_backward_custom(many, again).result()
whole = model.forward(many, "cross_entropy").result()
looked = model.forward(data, "custom", {"loss_id": handle.loss_id}).result()
after_mistakes = tell(lambda: model.optim_step(ADAM).result())
results = {"server": train(handle), "client": train(local), "callable": train(sum_all)}
report(
    loss_id=handle.loss_id,
    told=told,
    after_mistakes=after_mistakes,
    many={"metrics": sums.metrics, "loss": whole.metrics["loss:sum"]},
    length=float(np.mean([2 + seed % 3 for seed in range(1100)])),
    looked=looked.metrics,
    several=[weigh(several), weigh(dataclasses.replace(several, loss_id=None))],
    **results,
)

service.close("success").result()
