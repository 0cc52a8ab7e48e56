"""The losses: sums over positions, never means, so that splitting a batch changes nothing.

Shapes: P scored positions of one run; for cross_entropy also [P, K], K targets of each.
"""

from collections.abc import Callable, Mapping

import torch

from training.requests import LOSS_INPUTS

Inputs = Mapping[str, torch.Tensor]
Loss = Callable[[torch.Tensor, Inputs], torch.Tensor]


def cross_entropy(logprobs_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    return -(logprobs_P * inputs["weights"]).sum()


def importance_sampling(logprobs_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    ratio_P = torch.exp(logprobs_P - inputs["logprobs"])
    return -(ratio_P * inputs["advantages"]).sum()


def ppo(logprobs_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    ratio_P = torch.exp(logprobs_P - inputs["logprobs"])
    free_P = ratio_P * inputs["advantages"]
    clipped_P = _clip(ratio_P, inputs) * inputs["advantages"]
    return -torch.minimum(free_P, clipped_P).sum()


def cispo(logprobs_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    ratio_P = torch.exp(logprobs_P.detach() - inputs["logprobs"])
    return -(_clip(ratio_P, inputs) * logprobs_P * inputs["advantages"]).sum()


def dro(logprobs_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    penalty_P = 0.5 * inputs["beta"] * (logprobs_P - inputs["logprobs"]).square()
    return -(logprobs_P * inputs["advantages"] - penalty_P).sum()


def _clip(ratio_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """The bounds are of the ratio itself (0.8 and 1.2), not distances from 1."""
    return ratio_P.clamp(inputs["clip_low_threshold"], inputs["clip_high_threshold"])


LOSSES: Mapping[str, Loss] = {
    "cross_entropy": cross_entropy,
    "importance_sampling": importance_sampling,
    "ppo": ppo,
    "cispo": cispo,
    "dro": dro,
}


def compute_loss(
    loss_fn: str,
    logprobs_P: torch.Tensor,
    inputs: Inputs,
    config: Mapping[str, float | str],
) -> torch.Tensor:
    """Config and its defaults become inputs too; what a datum brings per position comes first."""
    settings = {
        key: torch.as_tensor(float(config.get(key, default)), device=logprobs_P.device)
        for key, default in LOSS_INPUTS[loss_fn].config.items()
    }
    return LOSSES[loss_fn](logprobs_P, {**settings, **inputs})
