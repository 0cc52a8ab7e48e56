"""SFT contender: the best bare PyTorch loop we know, for one model on one machine.

Rows lie end to end without padding, the head sees learned positions alone, LoRA is written by hand
and products go through oneDNN. It has no requests, no runs and no log-probabilities to answer with.

Shapes: N rows, I inputs and O outputs of a layer, H heads, T tokens, D head width.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM

from bench.contest import Stopwatch
from bench.sft_rows import FULL, LEARNING_RATE, RANK, SftRow, count_tokens, read_batches, repeat

ATTENTION = "bare"
ALPHA = 32


def multiply(left_NI: torch.Tensor, right_OI: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(left_NI, right_OI, None, "none", [], "")  # type: ignore[no-any-return]


class Product(torch.autograd.Function):
    """x W', whose gradient by W exists only where W is trained."""

    @staticmethod
    def forward(ctx: Any, rows_NI: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows_NI if weight_OI.requires_grad else None, weight_OI)
        return multiply(rows_NI, weight_OI)

    @staticmethod
    def backward(ctx: Any, grad_NO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows_NI, weight_OI = ctx.saved_tensors
        grad_NI = multiply(grad_NO, weight_OI.T) if ctx.needs_input_grad[0] else None
        grad_OI = multiply(grad_NO.T, rows_NI.T) if ctx.needs_input_grad[1] else None
        return grad_NI, grad_OI


class Linear(nn.Module):
    """A linear layer, with an adapter where `rank` is not 0."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.weight = linear.weight
        self.rank = rank
        if rank:
            self.a = nn.Parameter(torch.empty(rank, linear.in_features))
            self.b = nn.Parameter(torch.zeros(linear.out_features, rank))
            nn.init.kaiming_uniform_(self.a, a=5**0.5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows_NI = inputs.flatten(0, -2)
        out_NO = Product.apply(rows_NI, self.weight)  # type: ignore[no-untyped-call]
        if self.rank:
            out_NO = torch.addmm(out_NO, rows_NI @ self.a.T, self.b.T, alpha=ALPHA / self.rank)
        return out_NO.view(*inputs.shape[:-1], -1)  # type: ignore[no-any-return]


def attend(
    _module: nn.Module,
    query_1HTD: torch.Tensor,
    key_1HTD: torch.Tensor,
    value_1HTD: torch.Tensor,
    _mask: torch.Tensor | None,
    *,
    lengths: list[int],
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Row by row of the pack."""
    pieces = [
        torch.split_with_sizes(states, lengths, dim=2)
        for states in (query_1HTD, key_1HTD, value_1HTD)
    ]
    outputs = [
        nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        for query, key, value in zip(*pieces, strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def load(model: str, rank: int) -> tuple[nn.Module, list[nn.Parameter]]:
    """Without a rank all weights are trained."""
    AttentionInterface.register(ATTENTION, attend)
    policy = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation=ATTENTION
    )
    policy.requires_grad_(rank == 0)
    linears = [(n, m) for n, m in policy.named_modules() if isinstance(m, nn.Linear)]
    for name, module in linears:
        policy.set_submodule(name, Linear(module, 0 if name == "lm_head" else rank))
    return policy, [each for each in policy.parameters() if each.requires_grad]


def compute_loss(policy: Any, batch: Sequence[SftRow]) -> torch.Tensor:
    """The mean over the learned tokens. A row's last token is read by nobody."""
    lengths = [len(row.tokens) - 1 for row in batch]
    hidden = policy.model(
        input_ids=torch.tensor([[token for row in batch for token in row.tokens[:-1]]]),
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        use_cache=False,
        lengths=lengths,
    ).last_hidden_state[0]
    targets = torch.tensor([token for row in batch for token in row.tokens[1:]])
    learned = torch.tensor([on for row in batch for on in row.learned[1:]])
    return nn.functional.cross_entropy(policy.lm_head(hidden[learned]), targets[learned])


def main(model: str, rows: str, kind: str) -> None:
    watch = Stopwatch()
    policy, trained = load(model, 0 if kind == FULL else RANK)
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    for batch in repeat(read_batches(Path(rows))):
        if not watch.wait():
            return
        loss = compute_loss(policy, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        watch.stop(tokens=count_tokens(batch), loss=loss.item())


main(*sys.argv[1:])
