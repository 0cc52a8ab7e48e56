"""Dimuon, as Hone reads it: momentum, made orthogonal, for each LoRA matrix by itself.

The optimizer's formula is not public. What its published fields say is kept: a running mean of the
gradients (`beta1`), and a step of `learning_rate` times the matrix sign of that mean, a direction
whose Frobenius norm is sqrt(rank). That is Muon (Keller Jordan, "Muon: an optimizer for hidden
layers in neural networks", 2024; arXiv 2502.16982) on A and on B. A preconditioner of rows and
columns and a correction by the rank, which an earlier release named without saying what they
compute, are left out.

Shapes: G matrices of one shape, S the smaller and L the larger of their sides.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

import torch

from training.types import DimuonParams

# Five steps of Jordan's quintic bring singular values near 1 from as low as 1/500 of the norm;
# the cubic of Newton and Schulz then brings them to it.
QUINTIC = (3.4445, -4.7750, 2.0315)
NUM_QUINTIC, NUM_CUBIC = 5, 4
SMALLEST_NORM = 1e-20  # a mean of zeros has no direction


@dataclass(slots=True, kw_only=True)
class DimuonState:
    """One run's running mean of gradients, flat like its weights."""

    mean: torch.Tensor
    num_steps: int = 0

    @classmethod
    def fresh(cls, values: torch.Tensor) -> "DimuonState":
        return cls(mean=torch.zeros_like(values))

    @property
    def moments(self) -> Mapping[str, torch.Tensor]:
        return {"mean": self.mean}


def step_dimuon(
    values: Mapping[str, torch.Tensor],
    gradients: torch.Tensor,
    means: Mapping[str, torch.Tensor],
    state: DimuonState,
    params: DimuonParams,
) -> None:
    """In place. `values` and `means` are the matrices of the flat buffers, by the same names."""
    state.num_steps += 1
    state.mean.lerp_(gradients, 1 - params.beta1)
    for _, same in groupby(
        sorted(means, key=lambda name: means[name].shape), lambda n: means[n].shape
    ):
        names = list(same)
        directions = orthogonalise(torch.stack([means[name] for name in names]))
        for name, direction in zip(names, directions, strict=True):
            values[name].sub_(direction, alpha=params.learning_rate)


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """The matrix sign of each: its singular vectors, with every singular value 1."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x_GSL = matrices.mT if is_tall else matrices
    norms = torch.linalg.matrix_norm(x_GSL, keepdim=True).clamp(min=SMALLEST_NORM)
    x_GSL = x_GSL / norms
    a, b, c = QUINTIC
    for _ in range(NUM_QUINTIC):
        gram_GSS = x_GSL @ x_GSL.mT
        x_GSL = a * x_GSL + (b * gram_GSS + c * gram_GSS @ gram_GSS) @ x_GSL
    for _ in range(NUM_CUBIC):
        x_GSL = 1.5 * x_GSL - 0.5 * (x_GSL @ x_GSL.mT) @ x_GSL
    directions: torch.Tensor = x_GSL.mT if is_tall else x_GSL
    return directions
