"""AdamW with decoupled decay over an adapter's flat buffers, refusing what is not finite."""

import math
from dataclasses import dataclass, fields

import torch

from training.errors import InvalidInput
from training.types import AdamParams


@dataclass(slots=True, kw_only=True)
class AdamState:
    """One run's moments, flat like its weights, and how many steps they have seen."""

    mean: torch.Tensor
    square: torch.Tensor
    num_steps: int = 0

    @classmethod
    def fresh(cls, values: torch.Tensor) -> "AdamState":
        return cls(mean=torch.zeros_like(values), square=torch.zeros_like(values))


def check_params(params: AdamParams) -> None:
    for field in fields(params):
        value = getattr(params, field.name)
        if not math.isfinite(value) or value < 0:
            raise InvalidInput(f"{field.name} is {value}: send a finite number from 0 up")
    for name, value in (("beta1", params.beta1), ("beta2", params.beta2)):
        if value >= 1:
            raise InvalidInput(f"{name} is {value}: it must be below 1")
    if params.eps == 0:
        raise InvalidInput("eps is 0.0: weights without a gradient would become 0 / 0")


def update_weights(
    values: torch.Tensor, gradients: torch.Tensor, state: AdamState, params: AdamParams
) -> dict[str, float]:
    """One step in place. On gradients that are not finite: InvalidInput, and nothing changed."""
    norm = float(torch.linalg.vector_norm(gradients))
    if not math.isfinite(norm):
        raise InvalidInput(
            "the gradients are not finite: the step was refused, the weights are as before and "
            "the gradients were dropped; check advantages, logprobs and the learning rate"
        )
    share = params.grad_clip_norm / (norm + 1e-6)  # 1e-6 as torch.nn.utils.clip_grad_norm_ has it
    if 0 < share < 1:
        gradients.mul_(share)
    _apply(values, gradients, state, params)
    return {"grad_norm": norm, "learning_rate": params.learning_rate}


def _apply(
    values: torch.Tensor, gradients: torch.Tensor, state: AdamState, params: AdamParams
) -> None:
    """The order of operations is torch.optim.AdamW's: the results agree to the bit."""
    state.num_steps += 1
    values.mul_(1 - params.learning_rate * params.weight_decay)
    state.mean.lerp_(gradients, 1 - params.beta1)
    state.square.mul_(params.beta2).addcmul_(gradients, gradients, value=1 - params.beta2)
    mean_share = 1 - params.beta1**state.num_steps
    square_share = 1 - params.beta2**state.num_steps
    divisor = (state.square.sqrt() / math.sqrt(square_share)).add_(params.eps)
    values.addcdiv_(state.mean, divisor, value=-params.learning_rate / mean_share)
