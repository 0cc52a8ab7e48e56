"""The two log-probabilities of a drawn token: the model's own, and the drawn distribution's."""

from pathlib import Path

import pytest

from tests.training.engine.test_generate import PROMPTS, run_all
from training.engine.generate import Generator
from training.types import SampledSequence, SampleRequest, SamplingParams

TINY = Path(__file__).parents[2] / "assets" / "tiny-chatml-1m"


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator.load(TINY)


def draw(generator: Generator, **params: float) -> SampledSequence:
    request = SampleRequest(
        prompt=PROMPTS[3],
        params=SamplingParams(max_tokens=24, seed=3, **params),  # type: ignore[arg-type]
        with_both_logprobs=True,
    )
    sequence = run_all(generator, [(request, None)])[0].sequences[0]
    assert sequence.raw_logprobs is not None
    assert sequence.drawn_logprobs is not None
    return sequence


def test_the_models_own_are_of_no_temperature_and_no_cut(generator: Generator) -> None:
    sequence = draw(generator, temperature=0.6, top_k=5, top_p=0.9)
    plain = SampleRequest(
        prompt=[*PROMPTS[3], *sequence.tokens],
        params=SamplingParams(max_tokens=1),
        prompt_logprobs=True,
    )
    scored = run_all(generator, [(plain, None)])[0].prompt_logprobs
    assert scored is not None
    assert sequence.raw_logprobs == pytest.approx(scored[len(PROMPTS[3]) :], abs=1e-4)


def test_a_cut_distribution_has_all_its_probability_on_what_is_left(generator: Generator) -> None:
    only = draw(generator, temperature=1.3, top_k=1)
    assert only.drawn_logprobs == pytest.approx([0.0] * len(only.tokens), abs=1e-6)
    assert min(value for value in only.raw_logprobs or () if value is not None) < -0.01
    cut = draw(generator, temperature=0.7, top_k=4)
    pairs = zip(cut.drawn_logprobs or (), cut.logprobs, strict=True)
    assert all(drawn is not None and drawn >= tempered - 1e-6 for drawn, tempered in pairs)


def test_without_any_of_it_all_three_are_one(generator: Generator) -> None:
    sequence = draw(generator)
    assert sequence.raw_logprobs == pytest.approx(sequence.logprobs, abs=1e-6)
    assert sequence.drawn_logprobs == pytest.approx(sequence.logprobs, abs=1e-5)


def test_what_nobody_asks_for_is_not_noted(generator: Generator) -> None:
    request = SampleRequest(prompt=PROMPTS[0], params=SamplingParams(max_tokens=3, seed=1))
    sequence = run_all(generator, [(request, None)])[0].sequences[0]
    assert (sequence.raw_logprobs, sequence.drawn_logprobs) == (None, None)
