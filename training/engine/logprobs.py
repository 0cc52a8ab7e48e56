"""Log-probabilities of targets, chunk by chunk: the [tokens, vocabulary] tensor never exists.

Shapes: P positions, H hidden size, V vocabulary, C positions of a chunk, R rank.
"""

from collections.abc import Iterator
from typing import Any

import torch

from training.engine.lora import Active, LoraLinear, Pair, add_gradients

CHUNK_BYTES = 32 << 20  # of float32 logits that exist at one time


def compute_logprobs(
    hidden_PH: torch.Tensor, targets_P: torch.Tensor, head: LoraLinear, active: Active
) -> torch.Tensor:
    """Float32 log-probability of each target; `active` are the runs that train the head."""
    if torch.is_grad_enabled():
        leaves = [leaf for *_, pair in active for leaf in (pair.a, pair.b)]
        return _Logprobs.apply(hidden_PH, targets_P, head, active, *leaves)  # type: ignore[no-any-return,no-untyped-call]
    return _read_logprobs(hidden_PH, targets_P, head, active, None)


def _read_logprobs(
    hidden_PH: torch.Tensor,
    targets_P: torch.Tensor,
    head: LoraLinear,
    active: Active,
    slopes_PH: torch.Tensor | None,
) -> torch.Tensor:
    """Fills `slopes_PH`, where given, with the derivative of each log-probability by its row."""
    logprobs_P = torch.empty(len(targets_P), dtype=torch.float32, device=hidden_PH.device)
    for start, stop, pair in cut_chunks(len(targets_P), head.weight.shape[0], active):
        hidden_CH, targets_C = hidden_PH[start:stop], targets_P[start:stop]
        shifted_CV = _project(hidden_CH, head, pair)
        shifted_CV.sub_(shifted_CV.amax(dim=1, keepdim=True))
        chosen_C = shifted_CV.gather(1, targets_C[:, None]).squeeze(1)
        weights_CV = shifted_CV.exp_()
        total_C = weights_CV.sum(dim=1)
        logprobs_P[start:stop] = chosen_C - total_C.log()
        if slopes_PH is not None:
            mean_CH = _pull_back(weights_CV, head, pair) / total_C[:, None]
            slopes_PH[start:stop] = _rows_of(targets_C, head, pair) - mean_CH
    return logprobs_P


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
    logits_CV = torch.nn.functional.linear(hidden_CH, head.weight, head.bias)
    if pair is not None:
        low_CR = hidden_CH @ pair.a.to(hidden_CH.dtype).T
        logits_CV.addmm_(low_CR, pair.b.to(low_CR.dtype).T, alpha=pair.scale)
    return logits_CV.float()


def _pull_back(weights_CV: torch.Tensor, head: LoraLinear, pair: Pair | None) -> torch.Tensor:
    """Weights over the vocabulary times the head's rows, adapter included."""
    weights_CV = weights_CV.to(head.weight.dtype)
    rows_CH = weights_CV @ head.weight
    if pair is not None:
        rows_CH.addmm_(
            weights_CV @ pair.b.to(rows_CH.dtype), pair.a.to(rows_CH.dtype), alpha=pair.scale
        )
    return rows_CH.float()


def _rows_of(targets_C: torch.Tensor, head: LoraLinear, pair: Pair | None) -> torch.Tensor:
    rows_CH = head.weight[targets_C].float()
    if pair is not None:
        rows_CH.addmm_(pair.b[targets_C].float(), pair.a.float(), alpha=pair.scale)
    return rows_CH


class _Logprobs(torch.autograd.Function):
    """A log-probability's derivative by its own row is known in the forward already, and is as
    small as the row: so only a head that is trained needs its probabilities a second time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_PH: torch.Tensor,
        targets_P: torch.Tensor,
        head: LoraLinear,
        active: Active,
        *leaves: torch.Tensor,
    ) -> torch.Tensor:
        slopes_PH = None
        if ctx.needs_input_grad[0]:
            slopes_PH = torch.empty(hidden_PH.shape, device=hidden_PH.device)
        logprobs_P = _read_logprobs(hidden_PH, targets_P, head, active, slopes_PH)
        ctx.head, ctx.active, ctx.num_leaves = head, active, len(leaves)
        ctx.save_for_backward(hidden_PH, targets_P, slopes_PH)
        return logprobs_P

    @staticmethod
    def backward(ctx: Any, grad_P: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_PH, targets_P, slopes_PH = ctx.saved_tensors
        for start, stop, pair in cut_chunks(len(targets_P), ctx.head.weight.shape[0], ctx.active):
            if pair is not None:
                rows = slice(start, stop)
                _add_head_gradients(ctx.head, pair, hidden_PH[rows], targets_P[rows], grad_P[rows])
        grad_PH = None
        if slopes_PH is not None:
            grad_PH = slopes_PH.mul_(grad_P[:, None]).to(hidden_PH.dtype)
        return (grad_PH, None, None, None, *[None] * ctx.num_leaves)


def _add_head_gradients(
    head: LoraLinear,
    pair: Pair,
    hidden_CH: torch.Tensor,
    targets_C: torch.Tensor,
    grad_C: torch.Tensor,
) -> None:
    """The gradient by the logits is grad * (one at the target - probabilities)."""
    grad_CV = _project(hidden_CH, head, pair).softmax(dim=1).mul_(-grad_C[:, None])
    grad_CV.scatter_add_(1, targets_C[:, None], grad_C[:, None])
    low_CR = hidden_CH @ pair.a.to(hidden_CH.dtype).T
    add_gradients(pair, hidden_CH, low_CR, grad_CV.to(hidden_CH.dtype))
