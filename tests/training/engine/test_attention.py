"""Attention over packed rows as it is written down: windows, caps, shared keys and prefixes."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.engine import attention
from training.engine.attention import attend
from training.engine.scores import attend_masked
from training.engine.segments import Group, Segments

HEADS, SHARED, WIDTH = 4, 2, 3
# What equal lengths, a prefix of two, and a prefix of a prefix look like.
LAYOUTS = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 3), st.integers(1, 40)),
        st.tuples(st.just(0), st.integers(1, 30)),
    ),
    min_size=1,
    max_size=4,
)


def make_segments(layout: Sequence[tuple[int, int]]) -> Segments:
    """A count of 0 stands for three groups: one that two others continue, one of them by way of
    the other."""
    groups: list[Group] = []
    for count, length in layout:
        if count:
            groups.append(Group(count, length, ()))
        else:
            first = len(groups)
            groups.append(Group(1, length, ()))
            groups.append(Group(1, 5, (first,)))
            groups.append(Group(1, length + 3, (first, first + 1)))
    return Segments(tuple(groups))


def list_paths(segments: Segments) -> list[tuple[list[int], int]]:
    """Every sequence: the places of its tokens from the beginning, and how many are its own."""
    starts = [0, *accumulate(group.count * group.length for group in segments.groups)]
    paths = []
    for index, group in enumerate(segments.groups):
        above = [
            place
            for each in group.above
            for place in range(starts[each], starts[each] + segments.groups[each].length)
        ]
        for copy in range(group.count):
            start = starts[index] + copy * group.length
            paths.append(([*above, *range(start, start + group.length)], group.length))
    return paths


def attend_densely(
    states: Sequence[torch.Tensor], segments: Segments, window: int | None, softcap: float | None
) -> torch.Tensor:
    """Sequence by sequence and token by token, as it is written down."""
    query, key, value = (each[0] for each in states)
    key, value = (each.repeat_interleave(HEADS // SHARED, 0) for each in (key, value))
    out = torch.zeros(query.shape[1], HEADS, WIDTH, dtype=query.dtype)
    for path, own in list_paths(segments):
        for at in range(len(path) - own, len(path)):
            first = 0 if window is None else max(0, at + 1 - window)
            seen = path[first : at + 1]
            scores = torch.einsum("hd,hld->hl", query[:, path[at]], key[:, seen]) * 0.7
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            out[path[at]] = torch.einsum("hl,hld->hd", scores.softmax(-1), value[:, seen])
    return out[None]


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> object:
    """So that a few tokens make many blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK_ROWS", 7)
        patch.setattr(attention, "SCORE_BYTES", 4 * HEADS * 40 * 3)
        yield


@settings(deadline=None, max_examples=40)
@given(
    layout=LAYOUTS,
    window=st.one_of(st.none(), st.integers(1, 50)),
    softcap=st.one_of(st.none(), st.floats(0.2, 5)),
)
def test_every_token_attends_to_the_window_of_its_own_path(
    layout: list[tuple[int, int]], window: int | None, softcap: float | None
) -> None:
    segments = make_segments(layout)
    total = sum(group.count * group.length for group in segments.groups)
    generator = torch.Generator().manual_seed(total)
    states = [
        torch.randn(1, heads, total, WIDTH, generator=generator, dtype=torch.float64)
        for heads in (HEADS, SHARED, SHARED)
    ]
    ours = [state.clone().requires_grad_() for state in states]
    theirs = [state.clone().requires_grad_() for state in states]
    module = torch.nn.Identity()
    told, _ = attend(
        module,
        ours[0],
        ours[1],
        ours[2],
        None,
        segments=segments,
        scaling=0.7,
        sliding_window=window,
        softcap=softcap,
    )
    expected = attend_densely(theirs, segments, window, softcap)
    torch.testing.assert_close(told, expected, atol=1e-6, rtol=1e-6)
    slopes = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    (told * slopes).sum().backward()
    (expected * slopes).sum().backward()
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left.grad, right.grad, atol=1e-5, rtol=1e-5)


def count_scores(length: int, window: int, monkeypatch: pytest.MonkeyPatch) -> int:
    counts = []

    def count(query: torch.Tensor, key: torch.Tensor, *rest: Any) -> torch.Tensor:
        counts.append(query.shape[2] * key.shape[2])
        return attend_masked(query, key, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(attention, "attend_masked", count)
        states = torch.zeros(1, 1, length, WIDTH)
        segments = Segments((Group(1, length, ()),))
        module = torch.nn.Identity()
        attend(module, states, states, states, None, segments=segments, sliding_window=window)
    return sum(counts)


def test_a_window_costs_its_own_width_for_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (count_scores(7 * n + 6, 6, monkeypatch) for n in (10, 20, 40))
    assert 0 < second - first == (third - second) / 2
    assert third == 7 * 39 * 16 + 7 * (6 + 7)  # the first block begins with the sequence


def test_all_layers_share_the_masks_of_a_row() -> None:
    """Kept for the backward layer by layer, they would be larger than what they mask."""
    segments = Segments((Group(2, 40, ()),))
    states = torch.zeros(1, 1, 80, WIDTH)
    module = torch.nn.Identity()
    for _ in range(3):
        attend(module, states, states, states, None, segments=segments, sliding_window=9)
    interior, tail = ((7, 16), (3, 16))
    assert {tuple(mask.shape) for mask in segments.masks.values()} == {interior, tail}
