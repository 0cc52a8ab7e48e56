"""Gradients of log-probabilities in the precision of a GPU, against those in float64."""

import pytest
import torch
from torch import nn

from training.engine.logprobs import compute_logprobs
from training.engine.lora import LoraLinear, Route

VOCABULARY, WIDTH, POSITIONS = 2000, 128, 32


def make_case(sureness: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of a head, targets, and positions that lean towards their targets' rows."""
    random = torch.Generator().manual_seed(0)
    rows_VH = torch.randn(VOCABULARY, WIDTH, generator=random) * 0.06
    targets_P = torch.randint(0, VOCABULARY, (POSITIONS,), generator=random)
    noise_PH = torch.randn(POSITIONS, WIDTH, generator=random)
    return rows_VH.bfloat16(), targets_P, (noise_PH + sureness * rows_VH[targets_P]).bfloat16()


def differentiate_plainly(
    rows_VH: torch.Tensor, targets_PK: torch.Tensor, hidden_PH: torch.Tensor, grad_PK: torch.Tensor
) -> torch.Tensor:
    exact_PH = hidden_PH.double().requires_grad_()
    logprobs_PV = (exact_PH @ rows_VH.double().T).log_softmax(1)
    logprobs_PV.gather(1, targets_PK).backward(grad_PK.double())
    assert exact_PH.grad is not None
    return exact_PH.grad


@pytest.mark.parametrize("sureness", [0.0, 20.0, 32.0, 40.0])
@pytest.mark.parametrize("others", [0, 3])
def test_what_a_sure_token_still_has_to_learn_survives_bfloat16(
    sureness: float, others: int
) -> None:
    rows_VH, targets_P, hidden_PH = make_case(sureness)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=False)
    linear.weight = nn.Parameter(rows_VH, requires_grad=False)
    targets_PK = torch.stack([(targets_P + 7 * k) % VOCABULARY for k in range(1 + others)], dim=1)
    grad_PK = torch.ones(targets_PK.shape)
    grad_PK[:, 1:] = 1e-3
    hidden_PH.requires_grad_()
    compute_logprobs(hidden_PH, targets_PK, LoraLinear(linear, Route()), ()).backward(grad_PK)
    exact_PH = differentiate_plainly(rows_VH, targets_PK, hidden_PH.detach(), grad_PK)
    assert hidden_PH.grad is not None
    error = (hidden_PH.grad.double() - exact_PH).norm() / exact_PH.norm()
    assert error < 0.05
