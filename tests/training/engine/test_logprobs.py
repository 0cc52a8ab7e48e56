"""Gradients of log-probabilities in the precision of a GPU, against those in float64."""

import pytest
import torch
from torch import nn

from training.engine import logprobs
from training.engine.logits import IDENTITY, LogitRule
from training.engine.logprobs import compute_logprobs
from training.engine.lora import LoraLinear, Route, Sums

VOCABULARY, WIDTH, POSITIONS = 2000, 128, 32
TEMPERATURES = torch.linspace(0.5, 2.0, POSITIONS)
RULES = {
    "plain": IDENTITY,
    "scaled": LogitRule(scale=0.5),
    "capped": LogitRule(scale=2.0, cap=25.0),
    "tempered": LogitRule(scale=0.5).temper(TEMPERATURES),
    "capped and tempered": LogitRule(scale=2.0, cap=25.0).temper(TEMPERATURES),
}


def make_case(sureness: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of a head, targets, and positions that lean towards their targets' rows."""
    random = torch.Generator().manual_seed(0)
    rows_VH = torch.randn(VOCABULARY, WIDTH, generator=random) * 0.06
    targets_P = torch.randint(0, VOCABULARY, (POSITIONS,), generator=random)
    noise_PH = torch.randn(POSITIONS, WIDTH, generator=random)
    return rows_VH.bfloat16(), targets_P, (noise_PH + sureness * rows_VH[targets_P]).bfloat16()


def differentiate_plainly(
    rows_VH: torch.Tensor,
    targets_PK: torch.Tensor,
    hidden_PH: torch.Tensor,
    grad_PK: torch.Tensor,
    rule: LogitRule,
) -> tuple[torch.Tensor, torch.Tensor]:
    """By the positions, and by the head's rows."""
    exact_PH = hidden_PH.double().requires_grad_()
    exact_VH = rows_VH.double().requires_grad_()
    logits_PV = (exact_PH @ exact_VH.T) * rule.scale
    if rule.cap is not None:
        logits_PV = rule.cap * torch.tanh(logits_PV / rule.cap)
    if rule.coldness is not None:
        logits_PV = logits_PV / TEMPERATURES.double()[:, None]
    logits_PV.log_softmax(1).gather(1, targets_PK).backward(grad_PK.double())
    assert exact_PH.grad is not None
    assert exact_VH.grad is not None
    return exact_PH.grad, exact_VH.grad


@pytest.mark.parametrize("sureness", [0.0, 20.0, 32.0, 40.0])
@pytest.mark.parametrize("others", [0, 3])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_what_a_sure_token_still_has_to_learn_survives_bfloat16(
    sureness: float, others: int, rule: LogitRule
) -> None:
    rows_VH, targets_P, hidden_PH = make_case(sureness)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=False)
    linear.weight = nn.Parameter(rows_VH, requires_grad=False)
    targets_PK = torch.stack([(targets_P + 7 * k) % VOCABULARY for k in range(1 + others)], dim=1)
    grad_PK = torch.ones(targets_PK.shape)
    grad_PK[:, 1:] = 1e-3
    hidden_PH.requires_grad_()
    head = LoraLinear(linear, Route())
    compute_logprobs(hidden_PH, targets_PK, head, (), rule).backward(grad_PK)
    exact_PH, _ = differentiate_plainly(rows_VH, targets_PK, hidden_PH.detach(), grad_PK, rule)
    assert hidden_PH.grad is not None
    error = (hidden_PH.grad.double() - exact_PH).norm() / exact_PH.norm()
    assert error < 0.05


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_gradients_of_several_targets_are_those_of_float64(rule: LogitRule) -> None:
    rows_VH, targets_P, hidden_PH = make_case(4.0)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=False)
    linear.weight = nn.Parameter(rows_VH.float(), requires_grad=False)
    targets_PK = torch.stack([(targets_P + 7 * k) % VOCABULARY for k in range(4)], dim=1)
    grad_PK = torch.randn(targets_PK.shape, generator=torch.Generator().manual_seed(1))
    grad_PK[::3, 2] = 0.0
    leaf_PH = hidden_PH.float().requires_grad_()
    head = LoraLinear(linear, Route())
    compute_logprobs(leaf_PH, targets_PK, head, (), rule).backward(grad_PK)
    exact_PH, _ = differentiate_plainly(rows_VH, targets_PK, hidden_PH, grad_PK, rule)
    assert leaf_PH.grad is not None
    torch.testing.assert_close(leaf_PH.grad.double(), exact_PH, atol=1e-5, rtol=1e-5)


def sum_rows(
    linear: nn.Linear, targets_PK: torch.Tensor, hidden_PH: torch.Tensor, rule: LogitRule
) -> torch.Tensor:
    """The head's own gradient, by ours; of the gradients' ones."""
    head = LoraLinear(linear, Route())
    head.sums = Sums(weight=torch.zeros(VOCABULARY, WIDTH), bias=None)
    logprobs_PK = compute_logprobs(hidden_PH.clone().requires_grad_(), targets_PK, head, (), rule)
    logprobs_PK.backward(make_weights(targets_PK))
    return head.sums.weight


def make_weights(targets_PK: torch.Tensor) -> torch.Tensor:
    weights_PK = torch.linspace(0.5, 2.0, len(targets_PK))[:, None].repeat(1, targets_PK.shape[1])
    weights_PK[:, 1:] *= 0.1
    return weights_PK


@pytest.mark.parametrize("others", [0, 3])
@pytest.mark.parametrize("chunk_bytes", [1, 4 * POSITIONS * 300, 32 << 20])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_heads_own_gradient_is_the_same_in_pieces_of_any_size(
    others: int, chunk_bytes: int, rule: LogitRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", chunk_bytes)
    rows_VH, targets_P, hidden_PH = make_case(5.0)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=False)
    linear.weight = nn.Parameter(rows_VH.float(), requires_grad=False)
    targets_PK = torch.stack([(targets_P + 7 * k) % VOCABULARY for k in range(1 + others)], dim=1)
    targets_PK[0] = targets_PK[0, 0]  # one target several times
    ours_VH = sum_rows(linear, targets_PK, hidden_PH.float(), rule)
    weights_PK = make_weights(targets_PK)
    _, theirs_VH = differentiate_plainly(rows_VH, targets_PK, hidden_PH, weights_PK, rule)
    torch.testing.assert_close(ours_VH.double(), theirs_VH, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("sureness", [0.0, 20.0, 32.0, 40.0])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_what_a_head_still_has_to_learn_of_a_sure_token_survives_bfloat16(
    sureness: float, rule: LogitRule
) -> None:
    rows_VH, targets_P, hidden_PH = make_case(sureness)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=False)
    linear.weight = nn.Parameter(rows_VH, requires_grad=False)
    targets_PK = targets_P[:, None]
    ours_VH = sum_rows(linear, targets_PK, hidden_PH, rule)
    weights_PK = make_weights(targets_PK)
    _, theirs_VH = differentiate_plainly(rows_VH, targets_PK, hidden_PH, weights_PK, rule)
    assert (ours_VH.double() - theirs_VH).norm() / theirs_VH.norm() < 0.05


def test_a_heads_bias_gets_its_gradient() -> None:
    rows_VH, targets_P, hidden_PH = make_case(5.0)
    linear = nn.Linear(WIDTH, VOCABULARY)
    linear.weight = nn.Parameter(rows_VH.float(), requires_grad=False)
    linear.bias = nn.Parameter(torch.linspace(-1, 1, VOCABULARY))
    head = LoraLinear(linear, Route())
    head.sums = Sums(weight=torch.zeros(VOCABULARY, WIDTH), bias=torch.zeros(VOCABULARY))
    leaf_PH = hidden_PH.float().requires_grad_()
    compute_logprobs(leaf_PH, targets_P[:, None], head, ()).sum().backward()
    logprobs_PV = linear(hidden_PH.float()).log_softmax(1)
    (theirs_V,) = torch.autograd.grad(logprobs_PV.gather(1, targets_P[:, None]).sum(), linear.bias)
    assert head.sums.bias is not None
    torch.testing.assert_close(head.sums.bias, theirs_V, atol=1e-5, rtol=1e-5)
