"""AdamW against torch's, to the bit, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from training.engine.optim import AdamState, check_params, update_weights
from training.errors import InvalidInput
from training.types import AdamParams


@pytest.mark.parametrize(
    "params",
    [AdamParams(), AdamParams(learning_rate=0.01, weight_decay=0.1, beta2=0.999, eps=1e-8)],
    ids=["defaults", "decay"],
)
def test_five_steps_are_torchs_to_the_bit(params: AdamParams) -> None:
    torch.manual_seed(0)
    values = torch.randn(1000)
    theirs = values.clone().requires_grad_()
    optimizer = torch.optim.AdamW(
        [theirs],
        lr=params.learning_rate,
        betas=(params.beta1, params.beta2),
        eps=params.eps,
        weight_decay=params.weight_decay,
        fused=True,
    )
    state = AdamState.fresh(values)
    for _ in range(5):
        gradients = torch.randn(1000)
        theirs.grad = gradients.clone()
        optimizer.step()
        update_weights(values, gradients, state, params)
    assert torch.equal(values, theirs)


def test_clipping_scales_to_the_norm_and_reports_the_one_before() -> None:
    gradients = torch.tensor([3.0, 4.0])
    state = AdamState.fresh(gradients)
    params = AdamParams(grad_clip_norm=1.0)
    metrics = update_weights(torch.zeros(2), gradients, state, params)
    assert metrics == pytest.approx({"grad_norm": 5.0, "learning_rate": 1e-4})
    torch.testing.assert_close(gradients, torch.tensor([0.6, 0.8]), atol=1e-6, rtol=0)


def test_gradients_below_the_norm_and_a_norm_of_zero_clip_nothing() -> None:
    for norm in (0.0, 10.0):
        gradients = torch.tensor([3.0, 4.0])
        params = AdamParams(grad_clip_norm=norm)
        update_weights(torch.zeros(2), gradients, AdamState.fresh(gradients), params)
        assert gradients.tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", float("nan")),
        ("learning_rate", -1.0),
        ("beta1", 1.0),
        ("beta2", 1.5),
        ("eps", 0.0),
        ("weight_decay", float("inf")),
        ("grad_clip_norm", -0.5),
    ],
)
def test_a_parameter_that_would_break_the_weights_is_refused_by_name(
    field: str, value: float
) -> None:
    with pytest.raises(InvalidInput, match=f"{field} is {value}"):
        check_params(replace(AdamParams(), **{field: value}))
