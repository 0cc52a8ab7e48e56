"""However it is cut: a full-parameter run has the numbers of a reference with twice the digits."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.training.engine.test_exactness import (
    Tenant,
    assert_close,
    budgets,
    draw_tenant,
    generated,
    judge,
)
from training.engine.core import Engine
from training.types import ForwardBackwardOutput, LoraSpec


@pytest.fixture(scope="module")
def engine(tiny_path: Path) -> Engine:
    engine = Engine.load(tiny_path)
    engine.create_adapter("run", LoraSpec(rank=0))
    return engine


@pytest.fixture(scope="module")
def plain(tiny_path: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_path, dtype=torch.float64)
    return model


def train(engine: Engine, tenant: Tenant) -> Iterator[ForwardBackwardOutput]:
    """Its requests one after the other; their gradients are summed."""
    engine.drop_gradients("run")
    for request in tenant.make_requests():
        output = engine.forward_backward({"run": request})["run"]
        assert isinstance(output, ForwardBackwardOutput)
        yield output


def sum_plainly(
    model: PreTrainedModel, tenant: Tenant
) -> tuple[list[float], Sequence[torch.Tensor]]:
    """One sequence at a time, over the whole vocabulary. Returns the loss's terms."""
    terms: list[float] = []
    told = []
    model.zero_grad()
    for datum in tenant.make_data():
        logits = model(input_ids=torch.from_numpy(datum.tokens)[None]).logits[0]
        targets = torch.from_numpy(datum.inputs["target_tokens"])
        logprobs = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
        values, slopes = judge(tenant.loss_fn, datum, logprobs.tolist())
        (logprobs * torch.tensor(slopes)).sum().backward()
        terms += values
        told.append(logprobs.detach())
    return terms, told


@generated(max_examples=25)
@given(tenant=draw_tenant(), budget=budgets)
def test_a_full_parameter_run_has_the_numbers_of_the_reference(
    engine: Engine, plain: PreTrainedModel, tenant: Tenant, budget: int
) -> None:
    engine.token_budget = budget
    outputs = list(train(engine, tenant))
    terms, theirs = sum_plainly(plain, tenant)
    loss = sum(output.metrics["loss:sum"] for output in outputs)
    assert loss == pytest.approx(sum(terms), rel=1e-5, abs=1e-5 * sum(map(abs, terms)))
    told = [torch.from_numpy(logprobs) for output in outputs for logprobs in output.logprobs]
    assert_close(torch.cat(told), torch.cat(list(theirs)), "logprobs")
    weights = engine.find_weights("run")
    gradients = weights.view(weights.gradients)
    for name, parameter in plain.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert_close(gradients[name], expected, name)


@generated(max_examples=6)
@given(tenant=draw_tenant(), other=draw_tenant(), budget=budgets)
def test_it_is_the_same_bit_for_bit_whatever_came_before(
    engine: Engine, tenant: Tenant, other: Tenant, budget: int
) -> None:
    engine.token_budget = budget
    found = []
    for _ in range(2):
        list(train(engine, tenant))
        found.append(engine.find_weights("run").gradients.clone())
        list(train(engine, other))
    assert torch.equal(*found)
