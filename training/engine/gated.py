"""Gated MLPs that keep two tensors for the backward instead of four.

down(act(gate) * up) needs gate and up again, and what is computed of them element by element: that
is as quickly computed again as it is read from memory, so it is not kept. Bit for bit the same.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

# Their forward is down_proj(act_fn(gate_proj(x)) * up_proj(x)).
GATED = frozenset(
    f"{family}MLP"
    for family in (
        "Gemma",
        "Gemma2",
        "Gemma3",
        "Granite",
        "Llama",
        "Mistral",
        "Olmo2",
        "Olmo3",
        "Qwen2",
        "Qwen3",
        "SmolLM3",
    )
)


def thin_out(model: PreTrainedModel) -> int:
    """From now on; returns how many MLPs of the model keep less."""
    found = [module for module in model.modules() if type(module).__name__ in GATED]
    for module in found:
        module.forward = ThinForward(module)
    return len(found)


class ThinForward:
    """The forward of one MLP."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        self.plain = module.forward

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled() or has_saving_hooks():
            plain: torch.Tensor = self.plain(hidden)
            return plain
        gate, up = self.module.gate_proj(hidden), self.module.up_proj(hidden)
        again = _Again(self.module.act_fn, gate.detach(), up.detach())
        product = _Product.apply(gate, up, again)  # type: ignore[no-untyped-call]
        place = product.data_ptr()

        def drop(tensor: torch.Tensor) -> torch.Tensor | torch.Size:
            return tensor.shape if tensor.data_ptr() == place else tensor

        def restore(kept: torch.Tensor | torch.Size) -> torch.Tensor:
            return again.multiply().view(kept) if isinstance(kept, torch.Size) else kept

        with torch.autograd.graph.saved_tensors_hooks(drop, restore):
            output: torch.Tensor = self.module.down_proj(product)
        return output


def has_saving_hooks() -> bool:
    """Whether somebody else, such as activation checkpointing, says what is kept."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


class _Again:
    """What the backward computes again: once, though two of its steps ask for it."""

    def __init__(
        self, act: Callable[[torch.Tensor], torch.Tensor], gate: torch.Tensor, up: torch.Tensor
    ) -> None:
        self.act, self.gate, self.up = act, gate, up
        self.acted: tuple[torch.Tensor, torch.Tensor] | None = None

    def multiply(self) -> torch.Tensor:
        with torch.enable_grad():
            leaf = self.gate.requires_grad_()
            self.acted = leaf, self.act(leaf)
        return self.acted[1].detach() * self.up

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The gate, and what the activation makes of it, to be differentiated."""
        if self.acted is None:  # nobody trains what comes after
            self.multiply()
        assert self.acted is not None
        acted, self.acted = self.acted, None
        return acted


class _Product(torch.autograd.Function):
    """act(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, again: _Again) -> torch.Tensor:
        ctx.again = again
        return again.act(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        leaf, acted = ctx.again.take()
        grad_up = grad * acted.detach() if ctx.needs_input_grad[1] else None
        grad_gate = None
        if ctx.needs_input_grad[0]:
            (grad_gate,) = torch.autograd.grad(acted, leaf, grad * ctx.again.up)
        ctx.again = None
        return grad_gate, grad_up, None
