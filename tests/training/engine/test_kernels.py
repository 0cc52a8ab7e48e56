"""What a GPU's kernels are asked for, computed on a CPU: flex attention by its own plain form,
flash attention by what its documentation says of its arguments."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.engine.test_attention import (
    HEADS,
    LAYOUTS,
    SHARED,
    WIDTH,
    attend_densely,
    make_segments,
)
from training.engine.kernels import Kernel, attend_flash, attend_flex, choose_kernel
from training.engine.scores import Rule
from training.engine.segments import Segments, list_sequences

CAPS = st.one_of(st.none(), st.floats(0.2, 5))
WINDOWS = st.one_of(st.none(), st.integers(1, 50))


@pytest.fixture(autouse=True)
def _without_a_compiler() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        yield


def attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_starts: torch.Tensor,
    key_starts: torch.Tensor,
    longest_query: int,
    longest_key: int,
    *,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
) -> torch.Tensor:
    """flash_attn_varlen_func: the causal mask lies at the bottom right, -1 is no bound of a window,
    0.0 no cap."""
    assert causal
    outputs = []
    bounds = zip(pairwise(query_starts.tolist()), pairwise(key_starts.tolist()), strict=True)
    for (start, stop), (first, last) in bounds:
        assert (stop - start <= longest_query, last - first <= longest_key) == (True, True)
        own_key, own_value = (
            each[first:last].repeat_interleave(HEADS // SHARED, 1) for each in (key, value)
        )
        scores = torch.einsum("qhd,khd->hqk", query[start:stop], own_key) * softmax_scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        at = torch.arange(stop - start)[:, None] + (last - first) - (stop - start)
        back = at - torch.arange(last - first)
        seen = (back >= 0) & ((window_size[0] < 0) | (back <= window_size[0]))
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, own_value))
    return torch.cat(outputs)


def make_states(total: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(total)
    return [
        torch.randn(
            1, heads, total, WIDTH, generator=generator, dtype=torch.float64
        ).requires_grad_()
        for heads in (HEADS, SHARED, SHARED)
    ]


def compute(
    attend: Callable[..., torch.Tensor], segments: Segments
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The output, and the gradients of its sum with weights."""
    states = make_states(list_sequences(segments)[-1].stop)
    told = attend(states)
    slopes = torch.linspace(-1, 1, told.numel(), dtype=told.dtype).view(told.shape)
    return told, list(torch.autograd.grad((told * slopes).sum(), states))


def assert_dense(kernel: Kernel, segments: Segments, rule: Rule) -> None:
    def act(states: list[torch.Tensor]) -> torch.Tensor:
        query, key, value = states
        return kernel(query, key, value, segments, rule)

    def act_densely(states: list[torch.Tensor]) -> torch.Tensor:
        return attend_densely(states, segments, rule.window, rule.softcap)

    told, gradients = compute(act, segments)
    expected, theirs = compute(act_densely, segments)
    torch.testing.assert_close(told, expected, atol=1e-6, rtol=1e-6)
    for left, right in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(layout=LAYOUTS, window=WINDOWS, softcap=CAPS)
def test_flash_attention_is_asked_for_the_window_of_every_tokens_own_path(
    layout: list[tuple[int, int]], window: int | None, softcap: float | None
) -> None:
    kernel = partial(attend_flash, attend_varlen)
    assert_dense(kernel, make_segments(layout), Rule(0.7, window, softcap))


@pytest.mark.parametrize(
    ("layout", "window", "softcap"),
    [
        ([(3, 40)], None, None),
        ([(0, 30), (2, 17)], None, None),
        ([(0, 30), (2, 17), (0, 2)], 16, None),
        ([(2, 9), (0, 6)], 4, 2.0),
    ],
)
def test_flex_attention_sees_the_window_of_every_tokens_own_path(
    layout: list[tuple[int, int]], window: int | None, softcap: float | None
) -> None:
    """Forward only: PyTorch has no backward of it on a CPU."""
    segments = make_segments(layout)
    query, key, value = (each.detach() for each in make_states(list_sequences(segments)[-1].stop))
    told = attend_flex(query, key, value, segments, Rule(0.7, window, softcap))
    expected = attend_densely([query, key, value], segments, window, softcap)
    torch.testing.assert_close(told, expected, atol=1e-6, rtol=1e-6)


def test_on_a_cpu_groups_are_attended_one_by_one() -> None:
    assert choose_kernel(torch.zeros(1, HEADS, 4, WIDTH)) is None
