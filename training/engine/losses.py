"""The losses: sums over positions, never means, so that splitting a batch changes nothing.

Shapes: P scored positions of one run; for cross_entropy also [P, K], K targets of each. A loss that
looks at a datum as a whole sees the positions of one datum.
"""

from collections.abc import Callable, Mapping

import torch

from training.requests import LOSS_INPUTS, PULL_LIMIT, TRUNCATION

Inputs = Mapping[str, torch.Tensor]
Loss = Callable[[torch.Tensor, Inputs], torch.Tensor]


def cross_entropy(logprobs_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    return -(logprobs_P * inputs["weights"]).sum()


def importance_sampling(logprobs_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    ratio_P = torch.exp(_log_ratio(logprobs_P, inputs))
    return -(ratio_P * inputs["advantages"]).sum()


def ppo(logprobs_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    return _sum_clipped(_log_ratio(logprobs_P, inputs), inputs)


def cispo(logprobs_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    ratio_P = torch.exp(logprobs_P.detach() - inputs["logprobs"])
    return -(_clip(ratio_P, inputs) * logprobs_P * inputs["advantages"]).sum()


def dro(logprobs_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    penalty_P = 0.5 * inputs["beta"] * (logprobs_P - inputs["logprobs"]).square()
    return -(logprobs_P * inputs["advantages"] - penalty_P).sum()


def dppo(logprobs_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """DPPO (arXiv 2602.04879) with the binary total variation: a token whose probability has moved
    too far the way that its advantage pushes it is left alone, whatever its ratio."""
    is_held_P = _find_held(logprobs_P.detach(), inputs)
    log_ratio_P = torch.where(is_held_P, _log_ratio(logprobs_P, inputs), 0.0)
    return -torch.where(is_held_P, torch.exp(log_ratio_P) * inputs["advantages"], 0.0).sum()


def reinforce(logprobs_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """Williams 1992: what was sampled is taken to be the learner's own."""
    return -(logprobs_P * inputs["advantages"]).sum()


def gspo(logprobs_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """GSPO-token (arXiv 2507.18071): every token has the ratio of its sequence, the geometric mean
    over the mask, and its own gradient."""
    own_P = logprobs_P - logprobs_P.detach()
    return _sum_clipped(own_P + _sequence_log_ratio(logprobs_P, inputs), inputs)


def stable_reinforce(logprobs_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """Hone's own objective: docs/stable_reinforce.md derives it."""
    own_P = torch.exp(logprobs_P - logprobs_P.detach())  # 1, with the gradient of the logprob
    weight_P = torch.exp(logprobs_P.detach() - inputs["logprobs"]).clamp(max=TRUNCATION)
    pull_P = torch.nn.functional.huber_loss(
        logprobs_P, inputs["logprobs"], delta=PULL_LIMIT, reduction="none"
    )
    pulled_P = torch.where(inputs["advantages"] != 0, pull_P, 0.0)
    return (inputs["kl_coeff"] * pulled_P - weight_P * own_P * inputs["advantages"]).sum()


def _log_ratio(logprobs_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """0 without an advantage, where 0 * exp(1000) is to be 0."""
    return torch.where(inputs["advantages"] != 0, logprobs_P - inputs["logprobs"], 0.0)


def _sequence_log_ratio(logprobs_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """A mask without a position has none: its datum was refused, or has no advantages."""
    marked_P = inputs["sequence_ratio_mask"] != 0
    log_ratio_P = torch.where(marked_P, logprobs_P.detach() - inputs["logprobs"], 0.0)
    return log_ratio_P.sum() / marked_P.sum().clamp(min=1)


def _sum_clipped(log_ratio_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """-min(ratio * A, clipped ratio * A). A ratio that overflowed has no part in the gradient where
    its bound is the smaller one: 0 * inf would be NaN."""
    advantages_P = inputs["advantages"]
    is_free_P = _find_free(log_ratio_P.detach(), inputs)
    free_P = torch.exp(torch.where(is_free_P, log_ratio_P, 0.0))
    bound_P = _clip(torch.exp(log_ratio_P.detach()), inputs)
    return -(torch.where(is_free_P, free_P, bound_P) * advantages_P).sum()


def _find_held(logprobs_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """Where the probability is within its bounds of the sampler's, or on its way back."""
    moved_P, advantages_P = logprobs_P.exp() - inputs["logprobs"].exp(), inputs["advantages"]
    is_too_high_P = (advantages_P > 0) & (moved_P > inputs["delta_high"])
    is_too_low_P = (advantages_P < 0) & (moved_P < -inputs["delta_low"])
    return ~(is_too_high_P | is_too_low_P)


def _find_free(log_ratio_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """Where the ratio itself, not its bound, is the smaller side."""
    ratio_P, advantages_P = torch.exp(log_ratio_P), inputs["advantages"]
    return ratio_P * advantages_P <= _clip(ratio_P, inputs) * advantages_P


def _clip(ratio_P: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """The bounds are of the ratio itself (0.8 and 1.2), not distances from 1."""
    return ratio_P.clamp(inputs["clip_low_threshold"], inputs["clip_high_threshold"])


LOSSES: Mapping[str, Loss] = {
    "cross_entropy": cross_entropy,
    "importance_sampling": importance_sampling,
    "ppo": ppo,
    "cispo": cispo,
    "dro": dro,
    "gspo": gspo,
    "dapo": ppo,
    "dppo": dppo,
    "reinforce": reinforce,
    "stable_reinforce": stable_reinforce,
}


def compute_loss(
    loss_fn: str,
    logprobs_P: torch.Tensor,
    inputs: Inputs,
    config: Mapping[str, float | str],
) -> torch.Tensor:
    return LOSSES[loss_fn](logprobs_P, add_settings(loss_fn, inputs, config))


def add_settings(
    loss_fn: str, inputs: Inputs, config: Mapping[str, float | str]
) -> dict[str, torch.Tensor]:
    """Config and its defaults become inputs too; what a datum brings per position comes first."""
    device = next(iter(inputs.values())).device
    settings = {
        key: torch.as_tensor(float(config.get(key, default)), device=device)
        for key, default in LOSS_INPUTS[loss_fn].config.items()
    }
    return {**settings, **inputs}


@torch.no_grad()
def measure_policy(
    loss_fn: str,
    logprobs_P: torch.Tensor,
    inputs: Inputs,
    config: Mapping[str, float | str],
) -> dict[str, float]:
    """Sums over the tokens with an advantage, their number among them. k1 and k3 are estimates of
    the divergence of the learner from the sampling policy, which drew the tokens."""
    given = add_settings(loss_fn, inputs, config)
    on_P = given["advantages"] != 0
    log_ratio_P = logprobs_P - given["logprobs"]
    of_token_P = log_ratio_P
    if loss_fn == "gspo":
        log_ratio_P = _sequence_log_ratio(logprobs_P, given).expand_as(log_ratio_P)
    sums = {
        "ratio": torch.exp(log_ratio_P),
        "kl_sample_train_k1": -of_token_P,
        "kl_sample_train_k3": torch.expm1(of_token_P) - of_token_P,
    }
    if (cut_P := _find_cut(loss_fn, log_ratio_P, given)) is not None:
        sums["clipped"] = cut_P.float()
    sums["num_tokens"] = on_P.float()
    totals = torch.stack([value_P[on_P].sum() for value_P in sums.values()]).tolist()
    return dict(zip(sums, totals, strict=True))


def _find_cut(loss_fn: str, log_ratio_P: torch.Tensor, inputs: Inputs) -> torch.Tensor | None:
    """Tokens that count less than their ratio says."""
    ratio_P = torch.exp(log_ratio_P)
    if loss_fn in ("ppo", "gspo", "dapo"):
        return ~_find_free(log_ratio_P, inputs)
    if loss_fn == "dppo":
        return ~_find_held(log_ratio_P + inputs["logprobs"], inputs)
    if loss_fn == "cispo":
        return _clip(ratio_P, inputs) != ratio_P
    return ratio_P > TRUNCATION if loss_fn == "stable_reinforce" else None
