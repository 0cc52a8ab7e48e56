"""What a draw means: every token owns a stretch of [0, 1) as long as its probability."""

import pytest
import torch

from training.engine.sampling import choose_tokens, draw_many, logprobs_of, pick, temper
from training.types import SamplingParams

NUM_DRAWS = 4000


def count_choices(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The share of each token over evenly spaced draws: its probability, to one draw's width."""
    draws = [(index + 0.5) / NUM_DRAWS for index in range(NUM_DRAWS)]
    rows = temper(logits.expand(NUM_DRAWS, -1), [params.temperature] * NUM_DRAWS)
    tokens = choose_tokens(rows, [params] * NUM_DRAWS, draws)
    return torch.bincount(tokens, minlength=len(logits)) / NUM_DRAWS


def make_logits(size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(size)) * 2


@pytest.mark.parametrize("size", [3, 256, 257, 1000])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_softmax_says(size: int, temperature: float) -> None:
    logits = make_logits(size)
    shares = count_choices(logits, SamplingParams(temperature=temperature))
    expected = (logits / temperature).softmax(0)
    assert torch.allclose(shares, expected, atol=1.01 / NUM_DRAWS)


def test_top_k_leaves_the_likeliest_in_their_proportions() -> None:
    logits = make_logits(600)
    shares = count_choices(logits, SamplingParams(top_k=5))
    best = logits.topk(5).indices
    assert torch.allclose(shares[best], logits[best].softmax(0), atol=1.01 / NUM_DRAWS)
    assert shares[best].sum() == pytest.approx(1)


def test_top_p_leaves_the_fewest_that_reach_it() -> None:
    logits = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2]).log()
    shares = count_choices(logits, SamplingParams(top_p=0.6))
    assert shares.tolist() == pytest.approx([0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], abs=1e-3)
    assert count_choices(logits, SamplingParams(top_p=0.01)).tolist() == [0, 1, 0, 0, 0]


def test_top_k_comes_before_top_p() -> None:
    logits = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2]).log()
    shares = count_choices(logits, SamplingParams(top_k=3, top_p=0.5))
    expected = [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]
    # Of the three that are left, the first holds 0.47 and the second brings it past 0.5.
    assert shares.tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("draw", [0.0, 0.5, 1 - 2**-53])
def test_no_draw_picks_a_token_without_probability(draw: float) -> None:
    probs = torch.zeros(1, 700)
    probs[0, 300], probs[0, 301] = 0.3, 0.7
    picked = pick(probs, [[draw, draw]])
    assert picked.tolist() == [[300 if draw == 0 else 301] * 2]


def test_cold_and_warm_rows_of_one_step_keep_to_themselves() -> None:
    logits = torch.stack([make_logits(50), make_logits(50)])
    params = [SamplingParams(temperature=0), SamplingParams(top_k=1)]
    tokens = choose_tokens(logits, params, [0.99, 0.99])
    assert tokens.tolist() == [logits[0].argmax().item()] * 2
    expected = logits.log_softmax(1)[:, tokens[0]]
    assert torch.allclose(logprobs_of(logits, tokens), expected)


@pytest.mark.parametrize("size", [3, 257, 1000])
def test_many_draws_of_one_row_are_as_often_as_the_softmax_says(size: int) -> None:
    logits = make_logits(size)
    draws = [(index + 0.5) / NUM_DRAWS for index in range(NUM_DRAWS)]
    tokens = draw_many(torch.stack([logits, -logits]), 0.5, [draws, draws])
    for row, expected in zip(tokens, ((logits / 0.5), (-logits / 0.5)), strict=True):
        shares = torch.bincount(row, minlength=size) / NUM_DRAWS
        assert torch.allclose(shares, expected.softmax(0), atol=1.01 / NUM_DRAWS)


def test_at_temperature_0_every_draw_is_the_likeliest() -> None:
    logits = make_logits(50)
    assert draw_many(logits[None], 0, [[0.1, 0.9, 0.5]]).tolist() == [[logits.argmax().item()] * 3]


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e-8, 1e39])
def test_no_temperature_makes_a_number_that_is_none(temperature: float) -> None:
    logits = make_logits(50)[None] * 100
    tempered = temper(logits, [temperature])
    tokens = choose_tokens(tempered, [SamplingParams(temperature=temperature)], [0.5])
    assert logprobs_of(tempered, tokens).isfinite().all()
    if temperature < 1:
        assert tokens.item() == logits.argmax().item()


def test_each_row_is_scaled_by_its_own_temperature_and_0_leaves_it_alone() -> None:
    logits = torch.stack([make_logits(9)] * 3)
    tempered = temper(logits, [0.0, 1.0, 0.5]).log_softmax(1)
    raw = make_logits(9)
    for row, expected in zip(tempered, (raw, raw, raw / 0.5), strict=True):
        assert torch.allclose(row, expected.log_softmax(0), atol=1e-5)
