"""Log-probabilities of targets, chunk by chunk: the [tokens, vocabulary] tensor never exists.

Shapes: P positions, K targets of each, H hidden size, V vocabulary, C positions of a chunk, R rank,
W rows of the head at one time.
A position is projected on the vocabulary once, whatever K.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from training.engine.logits import IDENTITY, LogitRule
from training.engine.lora import Active, LoraLinear, Pair, add_gradients, sum_product
from training.engine.products import multiply, pull_back
from training.memory import CHUNK_BYTES


def compute_logprobs(
    hidden_PH: torch.Tensor,
    targets_PK: torch.Tensor,
    head: LoraLinear,
    active: Active,
    rule: LogitRule = IDENTITY,
) -> torch.Tensor:
    """Float32 log-probability of each target; `active` are the runs that train the head."""
    if torch.is_grad_enabled():
        leaves = [leaf for *_, pair in active for leaf in (pair.a, pair.b)]
        return _Logprobs.apply(hidden_PH, targets_PK, head, active, rule, *leaves)  # type: ignore[no-any-return,no-untyped-call]
    return _read_logprobs(hidden_PH, targets_PK, head, active, rule, None).logprobs


@dataclass(frozen=True, slots=True)
class Reading:
    """Of each position: its targets' log-probabilities, the logarithm of the sum of all
    exponentials, and what share of it is not the first target's; how steep the targets' logits are,
    where a model bends them."""

    logprobs: torch.Tensor  # (P, K)
    lse: torch.Tensor  # (P, 1)
    rest: torch.Tensor  # (P, 1)
    gains: torch.Tensor | None  # (P, K)

    @classmethod
    def empty(cls, targets_PK: torch.Tensor, rule: LogitRule) -> "Reading":
        shape, device = targets_PK.shape, targets_PK.device
        lse_P1, rest_P1 = torch.empty(2, len(targets_PK), 1, device=device)
        gains_PK = None if rule.is_identity else torch.empty(shape, device=device)
        logprobs_PK = torch.empty(shape, dtype=torch.float32, device=device)
        return cls(logprobs_PK, lse_P1, rest_P1, gains_PK)


def _read_logprobs(
    hidden_PH: torch.Tensor,
    targets_PK: torch.Tensor,
    head: LoraLinear,
    active: Active,
    rule: LogitRule,
    slopes_PH: torch.Tensor | None,
) -> Reading:
    """Fills `slopes_PH`, where given, with the derivative of the first target's log-probability by
    its position: the target's row of the head less the mean of all rows. Of the weights, not of the
    rows, the difference is exact: a head in bfloat16 rounds away what a sure target has left.
    """
    reading = Reading.empty(targets_PK, rule)
    for start, stop, pair in cut_chunks(len(targets_PK), head.weight.shape[0], active):
        outputs_CV = _project(hidden_PH[start:stop], head, pair)
        bent = rule.narrow(slice(start, stop))
        gains = 1.0 if slopes_PH is None else bent.find_gains(outputs_CV)
        shifted_CV = bent.apply_(outputs_CV)
        highest_C1 = shifted_CV.amax(dim=1, keepdim=True)
        shifted_CV.sub_(highest_C1)
        first_C1 = targets_PK[start:stop, :1]
        chosen_CK = shifted_CV.gather(1, targets_PK[start:stop])
        weights_CV = shifted_CV.exp_().scatter_(1, first_C1, 0.0)
        others_C1 = weights_CV.sum(dim=1, keepdim=True)
        total_C1 = others_C1 + chosen_CK[:, :1].exp()
        log_total_C1 = total_C1.log()
        reading.logprobs[start:stop] = chosen_CK - log_total_C1
        reading.lse[start:stop] = highest_C1 + log_total_C1
        reading.rest[start:stop] = others_C1 / total_C1
        if slopes_PH is not None:
            weights_CV.scatter_(1, first_C1, -others_C1)
            if reading.gains is not None:
                weights_CV.mul_(gains)
                reading.gains[start:stop] = pick_gains(gains, targets_PK[start:stop])
            slopes_PH[start:stop] = _pull_back(weights_CV, head, pair) / -total_C1
        del shifted_CV, weights_CV  # before the next chunk's come to exist
    return reading


def pick_gains(gains: torch.Tensor | float, targets_CK: torch.Tensor) -> torch.Tensor | float:
    """What is one number a position is so for every target."""
    if isinstance(gains, float) or gains.shape[1] == 1:
        return gains
    return gains.gather(1, targets_CK)


def cut_chunks(
    num_positions: int, vocab_size: int, active: Active
) -> Iterator[tuple[int, int, Pair | None]]:
    """Cover all positions with pieces of bounded size that belong to one adapter or to none."""
    size = max(1, CHUNK_BYTES // (4 * vocab_size))
    at = 0
    for start, stop, pair in (*active, (num_positions, num_positions, None)):
        yield from ((i, min(i + size, start), None) for i in range(at, start, size))
        yield from ((i, min(i + size, stop), pair) for i in range(start, stop, size))
        at = stop


def _project(hidden_CH: torch.Tensor, head: LoraLinear, pair: Pair | None) -> torch.Tensor:
    logits_CV = multiply(hidden_CH, head.weight, head.bias)
    if pair is not None:
        low_CR = hidden_CH @ pair.a.to(hidden_CH.dtype).T
        logits_CV.addmm_(low_CR, pair.b.to(low_CR.dtype).T, alpha=pair.scale)
    return logits_CV.float()


def _pull_back(weights_CV: torch.Tensor, head: LoraLinear, pair: Pair | None) -> torch.Tensor:
    """Weights over the vocabulary times the head's rows, adapter included."""
    weights_CV = weights_CV.to(head.weight.dtype)
    rows_CH = pull_back(weights_CV, head.weight)
    if pair is not None:
        rows_CH.addmm_(
            weights_CV @ pair.b.to(rows_CH.dtype), pair.a.to(rows_CH.dtype), alpha=pair.scale
        )
    return rows_CH.float()


def _pull_others(
    grad_CK: torch.Tensor,
    gains_CK: torch.Tensor | None,
    targets_CK: torch.Tensor,
    head: LoraLinear,
    pair: Pair | None,
) -> torch.Tensor:
    """By how much the rows of the other targets lead away from the first one's."""
    others_CK = grad_CK[:, 1:]
    grad_CK = torch.cat([-others_CK.sum(dim=1, keepdim=True), others_CK], dim=1)
    grad_CK = grad_CK if gains_CK is None else grad_CK * gains_CK
    grad_CK, targets_CK = _drop_zeros(grad_CK, targets_CK)
    rows_CH = _sum_rows(head.weight, grad_CK, targets_CK)
    if pair is not None:
        rows_CH.addmm_(_sum_rows(pair.b, grad_CK, targets_CK), pair.a, alpha=pair.scale)
    return rows_CH


def _drop_zeros(
    grad_CK: torch.Tensor, targets_CK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As few columns as the fullest row needs: targets without a gradient cost nothing."""
    most = int(grad_CK.count_nonzero(dim=1).max())
    kept = (grad_CK == 0).byte().argsort(dim=1, stable=True)[:, :most]
    return grad_CK.gather(1, kept), targets_CK.gather(1, kept)


def _sum_rows(
    weight_VH: torch.Tensor, grad_CK: torch.Tensor, targets_CK: torch.Tensor
) -> torch.Tensor:
    """Some columns at a time. In the order of the columns, so the same on every device and day."""
    num_rows, width = len(grad_CK), weight_VH.shape[1]
    total_CH = torch.zeros((num_rows, width), device=grad_CK.device)
    size = max(1, CHUNK_BYTES // (4 * width * num_rows))
    for grads, targets in zip(
        torch.split(grad_CK, size, 1), torch.split(targets_CK, size, 1), strict=True
    ):
        rows = weight_VH[targets].float()
        total_CH.unsqueeze(1).baddbmm_(grads.unsqueeze(1), rows)
    return total_CH


class _Logprobs(torch.autograd.Function):
    """The derivative of one log-probability by its position is known in the forward already, and is
    as small as the position: so only a head that is trained needs its probabilities again. Those of
    other targets differ from it by the difference of two rows of the head.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_PH: torch.Tensor,
        targets_PK: torch.Tensor,
        head: LoraLinear,
        active: Active,
        rule: LogitRule,
        *leaves: torch.Tensor,
    ) -> torch.Tensor:
        slopes_PH = None
        if ctx.needs_input_grad[0]:
            slopes_PH = torch.empty(hidden_PH.shape, device=hidden_PH.device)
        reading = _read_logprobs(hidden_PH, targets_PK, head, active, rule, slopes_PH)
        ctx.head, ctx.active, ctx.rule, ctx.num_leaves = head, active, rule, len(leaves)
        totals = (reading.lse, reading.rest)
        ctx.save_for_backward(hidden_PH, targets_PK, slopes_PH, reading.gains, *totals)
        return reading.logprobs

    @staticmethod
    def backward(ctx: Any, grad_PK: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_PH, targets_PK, slopes_PH, gains_PK, *totals = ctx.saved_tensors
        if ctx.head.sums is not None:
            _sum_head(ctx.head, ctx.rule, hidden_PH, targets_PK, grad_PK, totals)
        grad_PH = None
        if slopes_PH is not None:
            grad_PH = slopes_PH.mul_(grad_PK.sum(dim=1, keepdim=True))
        for start, stop, pair in cut_chunks(len(targets_PK), ctx.head.weight.shape[0], ctx.active):
            rows = slice(start, stop)
            if pair is not None:
                rule = ctx.rule.narrow(rows)
                _add_head_gradients(
                    ctx.head, pair, hidden_PH[rows], targets_PK[rows], grad_PK[rows], rule
                )
            if grad_PH is not None and targets_PK.shape[1] > 1:
                gains_CK = None if gains_PK is None else gains_PK[rows]
                grad_PH[rows] += _pull_others(
                    grad_PK[rows], gains_CK, targets_PK[rows], ctx.head, pair
                )
        grad_PH = None if grad_PH is None else grad_PH.to(hidden_PH.dtype)
        return (grad_PH, None, None, None, None, *[None] * ctx.num_leaves)


def _add_head_gradients(
    head: LoraLinear,
    pair: Pair,
    hidden_CH: torch.Tensor,
    targets_CK: torch.Tensor,
    grad_CK: torch.Tensor,
    rule: LogitRule,
) -> None:
    """The gradient by the logits is grad * (one at the target - probabilities), for all targets."""
    outputs_CV = _project(hidden_CH, head, pair)
    gains = rule.find_gains(outputs_CV)
    grad_CV = rule.apply_(outputs_CV).softmax(dim=1)
    grad_CV.mul_(-grad_CK.sum(dim=1, keepdim=True)).scatter_add_(1, targets_CK, grad_CK)
    if not rule.is_identity:
        grad_CV.mul_(gains)
    low_CR = hidden_CH @ pair.a.to(hidden_CH.dtype).T
    add_gradients(pair, hidden_CH, low_CR, grad_CV.to(hidden_CH.dtype))


def _sum_head(
    head: LoraLinear,
    rule: LogitRule,
    hidden_PH: torch.Tensor,
    targets_PK: torch.Tensor,
    grad_PK: torch.Tensor,
    totals: Sequence[torch.Tensor],
) -> None:
    """The gradient of the head's own rows, W at a time: each row's sum is written once."""
    sums = head.sums
    assert sums is not None
    size = max(1, CHUNK_BYTES // (4 * max(1, len(hidden_PH))))
    for start in range(0, head.weight.shape[0], size):
        rows = slice(start, start + size)
        bias_W = None if head.bias is None else head.bias[rows]
        outputs_PW = multiply(hidden_PH, head.weight[rows], bias_W).float()
        gains = rule.find_gains(outputs_PW)
        grad_PW = _pull_logits(rule.apply_(outputs_PW), targets_PK - start, grad_PK, totals)
        if not rule.is_identity:
            grad_PW.mul_(gains)
        sum_product(sums.weight[rows], grad_PW.to(hidden_PH.dtype).T, hidden_PH, 1.0)
        if sums.bias is not None:
            sums.bias[rows] += grad_PW.sum(dim=0)


def _pull_logits(
    logits_PW: torch.Tensor,
    places_PK: torch.Tensor,
    grad_PK: torch.Tensor,
    totals: Sequence[torch.Tensor],
) -> torch.Tensor:
    """In place: grad * (one at the target - probabilities), for all targets that are among W.

    The first target's is grad times what it does not have yet, which is known without a
    difference: a probability near 1 has lost it.
    """
    lse_P1, rest_P1 = totals
    sum_P1 = grad_PK.sum(dim=1, keepdim=True)
    grad_PW = logits_PW.sub_(lse_P1).exp_().mul_(-sum_P1)
    is_here_PK = (places_PK >= 0) & (places_PK < grad_PW.shape[1])
    places_PK = places_PK.clamp(0, grad_PW.shape[1] - 1)
    first_P1 = places_PK[:, :1]
    exact_P1 = sum_P1 * rest_P1 + (grad_PK[:, :1] - sum_P1)
    first_value_P1 = torch.where(is_here_PK[:, :1], exact_P1, grad_PW.gather(1, first_P1))
    grad_PW.scatter_(1, first_P1, first_value_P1)
    return grad_PW.scatter_add_(1, places_PK[:, 1:], (grad_PK * is_here_PK)[:, 1:])
