"""One step of a run's optimizer over its adapter's flat buffers, refusing what is not finite."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch.optim.adamw import adamw

from training.engine.adapters import Adapter
from training.engine.dimuon import DimuonState, step_dimuon
from training.engine.full import FullWeights
from training.engine.steps import Asked, Measure
from training.errors import InvalidInput
from training.types import AdamParams, DimuonParams, LoraSpec, Optimizer, OptimizerParams

ROW = 1 << 10  # elements whose squares are summed in float32

T = TypeVar("T")
Weights = Adapter | FullWeights


def measure_norm(gradients: torch.Tensor) -> torch.Tensor:
    """In float64 over rows: torch's own loses a hundredth of 100 million elements' norm."""
    num_rows = len(gradients) // ROW
    rows = gradients[: num_rows * ROW].view(num_rows, ROW)
    norms = torch.linalg.vector_norm(rows, dim=1).double()
    rest = torch.linalg.vector_norm(gradients[num_rows * ROW :]).double()
    norm: torch.Tensor = torch.linalg.vector_norm(torch.cat([norms, rest[None]]))
    return norm


@dataclass(slots=True, kw_only=True)
class AdamState:
    """One run's moments, flat like its weights, and how many steps they have seen."""

    mean: torch.Tensor
    square: torch.Tensor
    num_steps: int = 0

    @classmethod
    def fresh(cls, values: torch.Tensor) -> "AdamState":
        return cls(mean=torch.zeros_like(values), square=torch.zeros_like(values))

    @property
    def moments(self) -> Mapping[str, torch.Tensor]:
        return {"mean": self.mean, "square": self.square}


OptimizerState = AdamState | DimuonState
STATES: Mapping[Optimizer, type[AdamState] | type[DimuonState]] = {
    "adamw": AdamState,
    "dimuon": DimuonState,
}


def name_optimizer(state: OptimizerState) -> Optimizer:
    return "adamw" if isinstance(state, AdamState) else "dimuon"


def name_moments(
    view: Callable[[torch.Tensor], Mapping[str, T]], state: OptimizerState
) -> dict[str, T]:
    """By the names of what they belong to, as `view` cuts a flat buffer."""
    return {
        f"{name}.{kind}": each
        for kind, flat in state.moments.items()
        for name, each in view(flat).items()
    }


def check_params(params: OptimizerParams) -> None:
    for field in fields(params):
        value = getattr(params, field.name)
        may_be_negative = field.name == "grad_clip_norm" and isinstance(params, DimuonParams)
        if not math.isfinite(value) or (value < 0 and not may_be_negative):
            raise InvalidInput(f"{field.name} is {value}: send a finite number from 0 up")
        if field.name.startswith("beta") and value >= 1:
            raise InvalidInput(f"{field.name} is {value}: it must be below 1")
    if isinstance(params, AdamParams) and params.eps == 0:
        raise InvalidInput("eps is 0.0: weights without a gradient would become 0 / 0")


def check_kind(spec: LoraSpec, kind: Optimizer) -> None:
    if spec.is_full and kind == "dimuon":
        raise InvalidInput(
            "dimuon is for the matrices of an adapter: a full-parameter run's optimizer is adamw"
        )


def update(
    weights: Weights,
    state: OptimizerState,
    params: OptimizerParams,
    asked: Asked,
) -> dict[str, float]:
    """One step in place, on the gradients divided by what is asked."""
    if asked.divisor > 1:
        weights.gradients.div_(asked.divisor)
    norms = asked.measure_buckets(weights.view(weights.gradients))
    metrics = move(weights, state, params, asked.measure)
    return metrics | norms | asked.describe_norm(metrics["grad_norm"])


def move(
    weights: Weights, state: OptimizerState, params: OptimizerParams, measure: Measure
) -> dict[str, float]:
    """By the optimizer that the run was created with."""
    if isinstance(state, AdamState) and isinstance(params, AdamParams):
        return update_weights(weights.values, weights.gradients, state, params, measure)
    if isinstance(state, DimuonState) and isinstance(params, DimuonParams):
        metrics = clip_gradients(weights.gradients, params, measure)
        means = weights.view(state.mean)
        step_dimuon(weights.tensors, weights.gradients, means, state, params)
        return metrics
    raise InvalidInput(
        f"this run's optimizer is {name_optimizer(state)}, from its creation on: the step was "
        f"refused, because its parameters are {type(params).__name__}"
    )


def update_weights(
    values: torch.Tensor,
    gradients: torch.Tensor,
    state: AdamState,
    params: AdamParams,
    measure: Measure = measure_norm,
) -> dict[str, float]:
    metrics = clip_gradients(gradients, params, measure)
    _apply(values, gradients, state, params)
    return metrics


def clip_gradients(
    gradients: torch.Tensor, params: OptimizerParams, measure: Measure = measure_norm
) -> dict[str, float]:
    """In place. On gradients that are not finite: InvalidInput, and nothing changed."""
    norm = float(measure(gradients))
    if not math.isfinite(norm):
        raise InvalidInput(
            "the gradients are not finite: the step was refused, the weights are as before and "
            "the gradients were dropped; check advantages, logprobs and the learning rate"
        )
    share = params.grad_clip_norm / (norm + 1e-6)  # 1e-6 as torch.nn.utils.clip_grad_norm_ has it
    if 0 < share < 1:
        gradients.mul_(share)
    return {"grad_norm": norm, "learning_rate": params.learning_rate}


def _apply(
    values: torch.Tensor, gradients: torch.Tensor, state: AdamState, params: AdamParams
) -> None:
    """torch.optim.AdamW's own fused kernel: the results agree to the bit, and no buffer is needed.

    Everything that is trained decays alike, norms and biases too: the step carries one number.
    """
    adamw(
        [values],
        [gradients],
        [state.mean],
        [state.square],
        max_exp_avg_sqs=[],
        state_steps=[torch.tensor(float(state.num_steps), device=values.device)],
        fused=True,
        amsgrad=False,
        beta1=params.beta1,
        beta2=params.beta2,
        lr=params.learning_rate,
        weight_decay=params.weight_decay,
        eps=params.eps,
        maximize=False,
    )
    state.num_steps += 1
