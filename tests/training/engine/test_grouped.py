"""Grouped products of many runs give what each run's slice gives by itself."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.engine import grouped
from training.engine.core import Engine
from training.engine.grouped import record_grouped
from training.engine.lora import Active, Pair, record_rows
from training.types import Datum, FloatArray, ForwardBackward, ForwardBackwardOutput, LoraSpec

INPUTS, OUTPUTS = 24, 40


def make_pair(
    rank: int,
    scale: float,
    generator: torch.Generator,
    widths: tuple[int, int] = (INPUTS, OUTPUTS),
) -> Pair:
    shapes = ((rank, widths[0]), (widths[1], rank))
    a, b = (torch.randn(shape, generator=generator) for shape in shapes)
    return Pair(
        a=a.requires_grad_(),
        b=b.requires_grad_(),
        a_grad=torch.ones_like(a),
        b_grad=torch.ones_like(b),
        scale=scale,
    )


def make_case(pieces: Sequence[tuple[int, int, int]]) -> tuple[torch.Tensor, Active]:
    """Rows, and whose they are: a gap, a length and a rank for each run."""
    generator = torch.Generator().manual_seed(sum(map(sum, pieces)))
    active, at = [], 0
    for gap, length, rank in pieces:
        pair = make_pair(rank, 32 / rank, generator)
        active.append((at + gap, at + gap + length, pair))
        at += gap + length
    return torch.randn((at + 2, INPUTS), generator=generator), tuple(active)


def clear(active: Active) -> list[torch.Tensor]:
    """The gradients so far; from here on they begin anew."""
    grads = [grad for *_, pair in active for grad in (pair.a_grad, pair.b_grad)]
    copies = [grad.clone() for grad in grads]
    for grad in grads:
        grad.fill_(1.0)
    return copies


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 35)), min_size=1, max_size=6
    ),
    has_bias=st.booleans(),
)
def test_outputs_and_gradients_are_those_of_the_slices(
    pieces: Sequence[tuple[int, int, int]], has_bias: bool
) -> None:
    rows, active = make_case(pieces)
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn((OUTPUTS, INPUTS), generator=generator)
    bias = torch.randn(OUTPUTS, generator=generator) if has_bias else None
    slope = torch.randn((len(rows), OUTPUTS), generator=generator)
    found = []
    for record in (record_rows, record_grouped):
        entering = rows.clone().requires_grad_()
        out = record(entering, weight, bias, active)
        (grad,) = torch.autograd.grad(out, entering, slope)
        found.append([out.detach(), grad, *clear(active)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3)


def test_rows_that_need_no_gradient_leave_the_runs_theirs() -> None:
    rows, active = make_case([(0, 4, 3), (1, 5, 8)])
    weight = torch.ones(OUTPUTS, INPUTS)
    record_grouped(rows, weight, None, active).sum().backward()
    ours = clear(active)
    record_rows(rows, weight, None, active).sum().backward()
    for mine, theirs in zip(ours, clear(active), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)


def test_on_a_cpu_slices_go_by_themselves() -> None:
    rows, active = make_case([(0, 4, 3), (1, 5, 8)])
    assert not grouped.is_suited(rows, active)
    assert not grouped.is_suited(rows.bfloat16(), active)


@pytest.mark.parametrize("widths", [(24, 40), (24, 36), (20, 40), (23, 41)])
def test_widths_that_the_kernel_does_not_take_are_told_before(widths: tuple[int, int]) -> None:
    inputs, outputs = widths
    pair = make_pair(3, 2.0, torch.Generator(), widths)
    active = ((0, 4, pair), (4, 9, pair))
    rows, weight = torch.ones(9, inputs).bfloat16(), torch.ones(outputs, inputs).bfloat16()
    refused = None
    try:
        record_grouped(rows, weight, None, active).sum().backward()
    except RuntimeError as error:
        refused = str(error)
    assert (refused is None) == grouped.are_widths_whole(active), refused


def test_a_pass_of_several_runs_is_the_same_either_way(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.create_adapter("other", LoraSpec(rank=7, seed=2, train_mlp=False))
    engine.create_adapter("third", LoraSpec(rank=2, seed=3, train_unembed=True))
    slices = learn(engine)
    monkeypatch.setattr(grouped, "is_suited", lambda _rows, active: len(active) > 1)
    groups = learn(engine)
    for ours, theirs in zip(groups, slices, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def learn(engine: Engine) -> list[FloatArray]:
    """Log-probabilities and gradients of a datum of each run."""
    requests = {}
    for number, run in enumerate(engine.runs):
        for pair in engine.adapters.by_run[run].pairs.values():
            torch.nn.init.normal_(
                pair.b.detach(), std=0.02, generator=torch.Generator().manual_seed(number)
            )
        engine.drop_gradients(run)
        tokens = np.random.default_rng(number).integers(0, 97, 20 + number)
        datum = Datum(tokens=tokens[:-1], inputs={"target_tokens": tokens[1:]})
        requests[run] = ForwardBackward(data=[datum])
    outputs = engine.forward_backward(requests)
    told = []
    for run, output in outputs.items():
        assert isinstance(output, ForwardBackwardOutput)
        told += [output.logprobs[0], engine.adapters.by_run[run].gradients.numpy().copy()]
    return told
