"""Projection heads: a matrix of a run's own that hidden states are multiplied with, where asked.

It is trained with the run and saved with its state; no server of the weights knows it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

HEAD = "projection_head.weight"
MOST_ROWS = 16384

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """Views of a run's flat buffers, [D, H]: D rows as wide as hidden states."""

    weight: torch.Tensor
    gradient: torch.Tensor

    @classmethod
    def find(
        cls, values: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor]
    ) -> "Projection | None":
        if HEAD not in values:
            return None
        return cls(weight=values[HEAD], gradient=gradients[HEAD])

    def project(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """The weight's gradient is summed into the run's."""
        weight_DH = self.weight.detach()
        if torch.is_grad_enabled():
            weight_DH = weight_DH.requires_grad_()
            weight_DH.register_hook(self._add)  # type: ignore[no-untyped-call]
        return hidden_NH @ weight_DH.T

    def _add(self, grad_DH: torch.Tensor) -> None:
        self.gradient.add_(grad_DH)

    def initialise(self, seed: int) -> None:
        """As torch begins a linear layer, from numbers drawn on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        fresh_DH = torch.empty(self.weight.shape)
        nn.init.kaiming_uniform_(fresh_DH, a=math.sqrt(5), generator=generator)
        self.weight.detach().copy_(fresh_DH)


def without_head(tensors: Mapping[str, T]) -> dict[str, T]:
    """What other loaders know."""
    return {name: each for name, each in tensors.items() if name != HEAD}


def with_head_alone(tensors: Mapping[str, T]) -> dict[str, T]:
    return {name: each for name, each in tensors.items() if name == HEAD}
